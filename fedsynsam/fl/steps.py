"""The batches of a local round: drawn as indices from the clients' own streams, gathered where the data lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import RowBatch
from fedsynsam.ops.local_steps import StoredBatches


def draw(members: np.ndarray, config: RunConfig, rng: np.random.Generator) -> np.ndarray:
    """Indices int64 [local_steps, B] of the batches of a client that holds the examples `members`.

    The client goes through its examples in a random order, and through a new one when that is used up. A client with
    fewer examples than `batch_size` uses all of them in every step.
    """
    size = min(config.batch_size, len(members))
    epochs = -(-config.local_steps * size // len(members))
    order = np.concatenate([rng.permutation(members) for _ in range(epochs)])
    return order[: config.local_steps * size].reshape(config.local_steps, size)


AHEAD = 32  # steps gathered at once on a CPU, where one large gather costs a third of many small ones


class Steps:
    """The batches of R clients in one round; `steps[k]` gathers those of the k-th step from the training set.

    `draws` are the clients' indices [K, B_r]. Shorter batches are padded to `width` (by default the longest one), and
    the padding has no share in the mean.
    """

    def __init__(self, dataset: Dataset, draws: Sequence[np.ndarray], width: int | None = None) -> None:
        self.dataset = dataset
        self.sizes = [drawn.shape[1] for drawn in draws]
        width = width or max(self.sizes)
        indices = np.zeros((len(draws[0]), len(draws), width), np.int64)  # [K, R, B]
        share = np.zeros((len(draws), width), np.float32)
        for row, (drawn, size) in enumerate(zip(draws, self.sizes, strict=True)):
            indices[:, row, :size] = drawn
            share[row, :size] = 1.0 / size
        self._first = -1  # the first step of those in `_gathered`
        device = dataset.y_train.device
        self._indices = _sent(indices, device)
        self._share = None if min(self.sizes) == width else _sent(share, device)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, step: int) -> RowBatch:
        if self._indices.device.type != "cpu":
            return RowBatch(*self._gather(self._indices[step]), self._share)
        place = step % AHEAD
        if place == 0 or self._first != step - place:
            self._first = step - place
            images, labels = self._gather(self._indices[self._first : self._first + AHEAD])
            pairs = zip(images.unbind(0), labels.unbind(0), strict=True)
            self._gathered = [RowBatch(*pair, self._share) for pair in pairs]
        return self._gathered[place]

    def stored(self) -> StoredBatches | None:
        """All batches of one client as the extension gathers them; None where it does not.

        It does not for more clients, padded batches, images that are not uint8, and elsewhere than on the CPU.
        """
        data, images = self.dataset, self.dataset.x_train
        if len(self.sizes) != 1 or self._share is not None or not images.gathers_here:
            return None
        return StoredBatches(images.stored, images.shift, images.scale, data.y_train.contiguous(), self._indices[:, 0])

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.dataset.x_train[indices], self.dataset.y_train[indices]

    def tensors(self) -> list[Tensor]:
        """What tells one round's steps from another's."""
        return [self._indices] if self._share is None else [self._indices, self._share]


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on `device`; on CUDA without waiting, from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
