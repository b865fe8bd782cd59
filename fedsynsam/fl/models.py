"""The models of the simulator. None has state besides its parameters (no BatchNorm): weights are all there is."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from fedsynsam.errors import ConfigError

_SEEDING = threading.Lock()  # PyTorch's generator belongs to the process: two threads would draw from each other's


def build_model(name: str, image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """The model `name` for images [channels, height, width], f32 on the CPU, its weights drawn from `seed` alone."""
    builders = {"cnn": _cnn, "mlp": _mlp, "resnet18": _ResNet18}
    if name not in builders:
        raise ConfigError(f"model: unknown value {name!r}; known: {', '.join(builders)}")
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builders[name](image_shape, classes)


def _cnn(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two valid 5x5 convolutions (8 and 16 channels), each with ReLU and 2x2 pooling, then 128 hidden units.

    Pooling comes before ReLU: the same function and gradient as after it, at a quarter of ReLU's cost.
    """
    channels, height, width = image_shape
    reduced = [((size - 4) // 2 - 4) // 2 for size in (height, width)]
    if min(reduced) < 1:
        raise ConfigError(f"model 'cnn' needs images of at least 16x16 pixels, these are {height}x{width}; use 'mlp'")
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * reduced[0] * reduced[1], 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def _mlp(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One hidden layer of 64 units."""
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 64), nn.ReLU(), nn.Linear(64, classes))


class _Block(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(32, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(32, outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(32, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class _ResNet18(nn.Sequential):
    """ResNet-18 for small images: a 3x3 stem without pooling, GroupNorm of 32 groups for BatchNorm."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], 64, 3, 1, 1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()]
        width = 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [_Block(width, outputs, stride), _Block(outputs, outputs, 1)]
            width = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
