"""Many clients in one pass: their weights are the rows of a matrix [R, P], and every operator works on all of them."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.func import functional_call

from fedsynsam.fl.flat import Batch, RowBatch


class BatchedModel:
    """The `RowModel` of R clients: `module` under `torch.func.vmap`, R sets of weights in `weights` [R, P].

    A convolution with weights of its own for each client is a grouped convolution; with `unfold` it is a matrix
    product of the unfolded images instead, which some devices are faster at. `gradient` may be another model's.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, rows: int, *, unfold: bool, gradient: Tensor | None = None
    ) -> None:
        self._module = copy.deepcopy(module).to(device)
        if unfold:
            unfold_convolutions(self._module)
        named = {name: parameter.shape for name, parameter in self._module.named_parameters()}
        size = sum(shape.numel() for shape in named.values())
        self.weights = torch.empty(rows, size, device=device)
        self.gradient = torch.zeros(rows, size, device=device) if gradient is None else gradient
        self._parameters: dict[str, Tensor] = {}  # views of `weights`
        self._gradients: list[Tensor] = []  # views of `gradient`
        place = 0
        for name, shape in named.items():
            columns = slice(place, place + shape.numel())
            self._parameters[name] = self.weights[:, columns].view(rows, *shape).requires_grad_()
            self._gradients.append(self.gradient[:, columns].view(rows, *shape))
            place = columns.stop

    def backward(self, batch: Batch) -> Tensor:
        """Write each row's gradient of the mean cross-entropy on the one `batch`; return the losses [R], detached."""
        images, labels = batch
        rows = len(self.weights)
        logits = self._logits(images, 0, None)
        if labels.is_floating_point():
            return self._backward(_losses(logits, labels.expand(rows, *labels.shape)).mean(dim=1))
        return self._backward(_losses(logits, labels.expand(rows, -1)).mean(dim=1))

    def backward_each(self, batch: RowBatch) -> Tensor:
        """Write each row's gradient of the mean cross-entropy on its own batch; return the losses [R], detached."""
        losses = _losses(self._logits(batch.images, 0, 0), batch.labels)
        return self._backward(losses.mean(dim=1) if batch.share is None else (losses * batch.share).sum(dim=1))

    def _logits(self, images: Tensor, *axes: int | None) -> Tensor:
        def call(parameters: dict[str, Tensor], own: Tensor) -> Tensor:
            return functional_call(self._module, parameters, (own,))

        # channels last, group_norm asks for what vmap does not answer (PyTorch 2.13: "NYI: querying is_contiguous");
        # `contiguous` would leave a set that lies so alone if it has one channel, for then both orders count
        if images.dim() == 4:
            images = images.clone(memory_format=torch.contiguous_format)
        return torch.func.vmap(call, in_dims=axes)(self._parameters, images.contiguous())

    def _backward(self, losses: Tensor) -> Tensor:
        # a row's loss depends on its own weights alone: the gradient of the sum is each row's own
        gradients = torch.autograd.grad(losses.sum(), list(self._parameters.values()))
        for target, gradient in zip(self._gradients, gradients, strict=True):
            target.copy_(gradient)
        return losses.detach()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example [R, B], of logits [R, B, classes] against class indices or soft labels."""
    flat = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="none")
    return flat.view(logits.shape[:2])


class UnfoldConv2d(nn.Conv2d):
    """A convolution as a matrix product: weight [O, C·h·w] times the unfolded image [C·h·w, places]."""

    def forward(self, x: Tensor) -> Tensor:
        padding = cast(tuple[int, int], self.padding)
        height, width = (
            (x.shape[axis - 2] + 2 * padding[axis] - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in range(2)
        )
        columns = functional.unfold(x, self.kernel_size, self.dilation, padding, self.stride)
        product = self.weight.flatten(1) @ columns
        if self.bias is not None:
            product = product + self.bias[:, None]
        return product.view(len(x), self.out_channels, height, width)


def unfold_convolutions(module: nn.Module) -> None:
    """Make every plain convolution in `module` an `UnfoldConv2d`, in place, with the parameters it has."""
    for child in module.modules():
        plain = type(child) is nn.Conv2d and child.groups == 1 and not isinstance(child.padding, str)
        if plain and child.padding_mode == "zeros":
            child.__class__ = UnfoldConv2d
