"""Passes of a small classifier on a CPU, each one call: its gradient, the gradient's gradients, its right predictions.

For a model of some ten thousand weights, operators and automatic differentiation cost about as much as the arithmetic,
and hold Python's lock while they do; and libraries' convolutions are made for many channels, with few they compute
mostly padding. The passes take images in blocks instead (csrc/cpu/tiles.h).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import ArgumentError
from .arguments import check_contiguous, check_tensor
from .extension import address, loaded

CPU = torch.device("cpu")
KERNELS = (3, 5)  # sizes of a convolution that there is code for


@dataclass(frozen=True)
class SmallNetwork:
    """Convolutions, each with 2x2 max pooling and ReLU, then dense layers with ReLU between them; all have a bias.

    Convolutions have no padding and stride 1; where a window has equal values the first counts as its maximum. Weights
    and gradients are one flat vector f32 [P]: weight and bias of each layer in order. Images are f32 [N, C, H, W] in
    any memory format; `labels` are classes, int64 [N], or soft, f32 [N, classes]. A loss is the mean cross-entropy, or
    the sum weighted by `share` f32 [N]. Everything is on the CPU. The number of threads changes no bit. Tensors of
    another dtype or shape, and labels that are no class, raise ArgumentError.
    """

    convolutions: tuple[tuple[int, int, int], ...]  # inputs, outputs, size of the kernel
    dense: tuple[tuple[int, int], ...]  # inputs, outputs
    _objects: dict[tuple[int, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def takes(self, images: Tensor) -> bool:
        """Whether the layers fit images of this shape."""
        fitting = images.dim() == 4 and images.dtype == torch.float32 and images.is_cpu
        return fitting and self.compiled(images.shape[1:]) is not None

    @property
    def classes(self) -> int:
        """What the last layer gives."""
        return self.dense[-1][1]

    @cached_property
    def size(self) -> int:
        """P, the number of weights."""
        convolutions = sum(outputs * (inputs * kernel**2 + 1) for inputs, outputs, kernel in self.convolutions)
        return convolutions + sum(outputs * (inputs + 1) for inputs, outputs in self.dense)

    def gradient(
        self, weights: Tensor, images: Tensor, labels: Tensor, share: Tensor | None = None, *, out: Tensor
    ) -> Tensor:
        """Write the gradient of the loss in the weights to `out` [P]; return the loss, f32 []. One thread."""
        self.check_vector("out", out)
        loss = weights.new_empty(())
        self._call("gradient", weights, NetworkBatch(self, images, labels, share), out, loss, 1)
        return loss

    def differentiable_gradient(
        self, weights: Tensor, images: Tensor, labels: Tensor, share: Tensor | None, threads: int
    ) -> Tensor:
        """The gradient of the loss in the weights [P]; it has gradients in weights, images and soft labels."""
        gradient: Tensor = _Gradient.apply(weights, images, labels, share, self, threads)
        return gradient

    def evaluate(self, weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The number of right predictions of classes, int64 [], and the sum of cross-entropies, f32 []. One thread."""
        if labels.is_floating_point():
            raise ArgumentError("labels are soft; only predictions of classes, int64 [N], can be counted")
        right, loss = torch.empty((), dtype=torch.int64), weights.new_empty(())
        self._call("evaluate", weights, NetworkBatch(self, images, labels), right, loss)
        return right, loss

    @property
    def no_class(self) -> str:
        """What is wrong where the extension says that a label is."""
        return f"a label is none of the model's classes, 0 to {self.classes - 1}"

    def compiled(self, shape: tuple[int, ...]) -> Any:
        """The extension's object for images of this shape [C, H, W]; None if the layers do not fit them."""
        if shape not in self._objects:
            self._objects[shape] = _compile(self, *shape)
        return self._objects[shape]

    def fitting(self, shape: tuple[int, ...]) -> Any:
        """`compiled`; raises ArgumentError where that is None."""
        if (network := self.compiled(shape)) is None:
            raise ArgumentError(f"the layers do not fit images of {list(shape)}")
        return network

    def check_vector(self, name: str, tensor: Tensor) -> None:
        """Check that a tensor is one value for each weight, as the extension reads and writes them."""
        if tensor.dtype != torch.float32 or tensor.numel() != self.size or not tensor.is_cpu:
            found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ArgumentError(f"{name} is {found}; it must be float32 with {self.size} values, on the CPU")
        check_contiguous(name, tensor)

    def _call(self, name: str, weights: Tensor, batch: NetworkBatch, *arguments: Tensor | int | None) -> None:
        """Call network_`name`_cpu on contiguous weights and outputs, None for those that are not wanted."""
        self.check_vector("weights", weights)
        pointers = [argument if isinstance(argument, int) else address(argument) for argument in arguments]
        function = getattr(loaded(), f"network_{name}_cpu")
        if not function(self.fitting(batch.images.shape[1:]), weights.data_ptr(), *batch.pointers(), *pointers):
            raise ArgumentError(self.no_class)


class NetworkBatch:
    """Images, labels and shares as the extension takes them; it holds them for as long."""

    def __init__(self, network: SmallNetwork, images: Tensor, labels: Tensor, share: Tensor | None = None) -> None:
        count = len(images)
        if images.dtype != torch.float32 or images.dim() != 4 or count == 0:
            raise ArgumentError(f"images are {images.dtype} {list(images.shape)}; they must be float32 [N, C, H, W]")
        if (labels.dtype, *labels.shape) not in ((torch.int64, count), (torch.float32, count, network.classes)):
            raise ArgumentError(
                f"labels are {labels.dtype} {list(labels.shape)}; these {count} images need classes, int64 [{count}], "
                f"or soft labels, float32 [{count}, {network.classes}]"
            )
        if share is not None and (share.dtype, *share.shape) != (torch.float32, count):
            raise ArgumentError(f"share is {share.dtype} {list(share.shape)}; it must be float32 [{count}]")
        if not (images.is_cpu and labels.is_cpu and (share is None or share.is_cpu)):
            raise ArgumentError("images, labels and share must be on the CPU")
        self.images, self.labels = images, labels.contiguous()
        self.share = None if share is None else share.contiguous()

    def pointers(self) -> tuple[Any, ...]:
        soft, labels = self.labels.is_floating_point(), self.labels.data_ptr()
        classes, targets = (0, labels) if soft else (labels, 0)
        return (self.images.data_ptr(), self.images.stride(), len(self.images), classes, targets, address(self.share))


class _Gradient(torch.autograd.Function):
    """The gradient g of the loss in the weights; backward gives the derivatives of ⟨v, g⟩ for a given v."""

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        images: Tensor,
        labels: Tensor,
        share: Tensor | None,
        network: SmallNetwork,
        threads: int,
    ) -> Tensor:
        weights = weights.contiguous()
        gradient, loss = torch.empty_like(weights), weights.new_empty(())
        ctx.save_for_backward(weights, images, labels, share)
        ctx.network, ctx.threads = network, threads
        network._call("gradient", weights, NetworkBatch(network, images, labels, share), gradient, loss, threads)
        return gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weights, images, labels, share = ctx.saved_tensors
        direction = direction.contiguous()
        wanted = ctx.needs_input_grad
        in_weights = torch.empty_like(weights) if wanted[0] else None
        in_images = images.new_empty(images.shape) if wanted[1] else None
        in_labels = labels.new_empty(labels.shape) if wanted[2] else None
        batch = NetworkBatch(ctx.network, images, labels, share)
        ctx.network._call("second", weights, batch, direction, in_weights, in_images, in_labels, ctx.threads)
        return in_weights, in_images, in_labels, None, None, None


def check_images(stored: Tensor, shift: Tensor, scale: Tensor) -> None:
    """Check stored images, uint8 [N, H, W, C], and what makes them float32: shift and scale, f32 [C]."""
    if stored.dim() != 4:
        raise ArgumentError(f"stored has shape {tuple(stored.shape)}; expected [N, H, W, C]")
    for name, tensor, shape, dtype in (
        ("stored", stored, stored.shape, torch.uint8),
        ("shift", shift, stored.shape[3:], torch.float32),
        ("scale", scale, stored.shape[3:], torch.float32),
    ):
        check_tensor(name, tensor, shape, (dtype,), CPU)
        check_contiguous(name, tensor)


def gather_images(stored: Tensor, indices: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(stored[indices] − shift) / scale of uint8 images [N, H, W, C] on the CPU, in one pass: f32 [*, H, W, C].

    `indices` int64 [*], `shift` and `scale` f32 [C]; the bits are PyTorch's. An index out of range raises IndexError.
    """
    check_images(stored, shift, scale)
    count, height, width, channels = stored.shape
    check_tensor("indices", indices, indices.shape, (torch.int64,), CPU)
    out = torch.empty(*indices.shape, height, width, channels)
    indices = indices.contiguous()
    known = (stored.data_ptr(), count, height * width, channels, shift.data_ptr(), scale.data_ptr())
    if not loaded().gather_images_cpu(*known, indices.data_ptr(), indices.numel(), out.data_ptr()):
        raise IndexError(f"an index of an image is not from 0 to {count - 1}")
    return out


def _compile(network: SmallNetwork, channels: int, height: int, width: int) -> Any:
    image, shapes = (channels, height, width), list[tuple[int, ...]]()
    for inputs, outputs, kernel in network.convolutions:
        if inputs != channels:
            return None
        shapes.append((inputs, height, width, outputs, kernel))
        channels, height, width = outputs, (height - kernel + 1) // 2, (width - kernel + 1) // 2
        if min(height, width) < 1:
            return None
    widths = [channels * height * width]
    for inputs, outputs in network.dense:
        if inputs != widths[-1]:
            return None
        widths.append(outputs)
    return loaded().Network(image, shapes, widths)
