"""Which models this library has passes of its own for."""

from __future__ import annotations

import torch
from torch import nn

from fedsynsam.ops import backend
from fedsynsam.ops.network import KERNELS, SmallNetwork


def small_network(module: nn.Module) -> SmallNetwork | None:
    """What `module` is, if it is f32 on a CPU and this library has passes of its own for it; otherwise None.

    It has them, with the C++ extension, for an `nn.Sequential` of convolutions (or none) that are each followed by 2x2
    max pooling and ReLU, `Flatten`, and `Linear` layers with ReLU between them.
    """
    on_cpu = all(parameter.is_cpu and parameter.dtype == torch.float32 for parameter in module.parameters())
    if type(module) is not nn.Sequential or not on_cpu or backend.choose("network", torch.device("cpu")) != "cpu":
        return None
    layers, convolutions = list(module.children()), list[tuple[int, int, int]]()
    while _is_block(layers[:3]):
        convolution = layers[0]
        assert isinstance(convolution, nn.Conv2d)
        convolutions.append((convolution.in_channels, convolution.out_channels, convolution.kernel_size[0]))
        layers = layers[3:]
    dense = [layer for layer in layers if isinstance(layer, nn.Linear) and layer.bias is not None]
    kinds = [type(layer) for layer in layers]
    if not dense or kinds != [nn.Flatten, nn.Linear, *[nn.ReLU, nn.Linear] * (len(dense) - 1)]:
        return None
    assert isinstance(layers[0], nn.Flatten)
    if (layers[0].start_dim, layers[0].end_dim) != (1, -1):
        return None
    return SmallNetwork(tuple(convolutions), tuple((layer.in_features, layer.out_features) for layer in dense))


def _is_block(layers: list[nn.Module]) -> bool:
    """Whether these are a convolution that there is code for, pooling of 2x2 windows, and ReLU."""
    if [type(layer) for layer in layers] != [nn.Conv2d, nn.MaxPool2d, nn.ReLU]:
        return False
    convolution, pooling, _ = layers
    known = [((size, size), (1, 1), (0, 0), (1, 1), 1) for size in KERNELS]
    own = tuple(getattr(convolution, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups"))
    pooled = tuple(getattr(pooling, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))
    return own in known and convolution.bias is not None and pooled == (2, 2, 0, 1, False)
