"""The synthetic set as a value, and as the file `synthetic.safetensors` that a run leaves and another may begin with.

The file is a safetensors file, so that reading it runs no code: tensors `images` f32 [M, C, H, W], `logits` f32
[M, classes] and `log_rate` f32 [], and facts in its metadata: what it was learned on and by, after which round, and
`low` and `high` [C], the normalised values of the darkest and the brightest pixel of the data set. These are its
normalisation: (images − low) / (high − low) lies in [0, 1], as a picture's pixels do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsynsam.errors import CheckpointError, ConfigError, DataError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset, channels_last
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.tensorfile import pack, unpack, write_atomically

FILE_NAME = "synthetic.safetensors"
FACTS = ("dataset", "partition", "alpha", "clients", "compressor", "model", "seed", "synthetic_method")
_ADVICE = f"give the {FILE_NAME} of a run"


@dataclass(frozen=True)
class SyntheticSet:
    """Images f32 [M, C, H, W], label logits f32 [M, classes], and log_rate f32 [], which trajectory matching learns."""

    images: Tensor
    logits: Tensor
    log_rate: Tensor

    @property
    def batch(self) -> Batch:
        """Images and soft labels, as a client uses them."""
        return channels_last(self.images), self.logits.softmax(dim=1)

    @property
    def num_bytes(self) -> int:
        """Bytes of a broadcast: images and logits as float32."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.images, self.logits))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as files keep them; `SyntheticSet(**tensors)` is the inverse."""
        return {"images": self.images, "logits": self.logits, "log_rate": self.log_rate}


@dataclass(frozen=True)
class StoredSet:
    """A synthetic set read from a file, and the facts beside it."""

    synthetic: SyntheticSet
    facts: dict[str, Any]

    def pixels(self) -> Tensor:
        """The images as pixels in [0, 1], f32 [M, C, H, W]."""
        low, high = (torch.tensor(self.facts[key], dtype=torch.float32) for key in ("low", "high"))
        return as_pixels(self.synthetic.images, low, high).clamp(0.0, 1.0)


def as_pixels(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Normalised images [N, C, H, W] as brightness, 0 at `low` and 1 at `high`, both [C]; 0 where these are equal."""
    low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
    return (images - low) / torch.where(high > low, high - low, torch.inf)


def save_synthetic(path: Path, synthetic: SyntheticSet, dataset: Dataset, config: RunConfig, round_number: int) -> None:
    """Write `synthetic`, learned after `round_number` rounds of a run of `config`, to `path`, whole or not at all."""
    facts = {
        "content": "synthetic set",
        "round": round_number,
        "low": dataset.low.tolist(),
        "high": dataset.high.tolist(),
        **{key: value for key, value in config.to_dict().items() if key in FACTS},
    }
    save_stored(path, StoredSet(synthetic, facts))


def save_stored(path: Path, stored: StoredSet) -> None:
    """Write a set and the facts beside it to `path`, whole or not at all."""
    write_atomically(path, pack(stored.synthetic.tensors(), stored.facts))


def read_synthetic(path: Path) -> StoredSet:
    """The set in the file `path`, on the CPU.

    Raises `DataError` naming the file when it cannot be read, is damaged, or holds something else.
    """
    if path.is_dir():
        raise DataError(f"synthetic: {str(path)!r} is a folder; {_ADVICE}, such as {str(path / FILE_NAME)!r}")
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise DataError(f"synthetic: {str(path)!r} cannot be read ({error.strerror}); {_ADVICE}") from error
    try:
        tensors, facts = unpack(blob, f"synthetic: {str(path)!r}", torch.device("cpu"), advice=_ADVICE)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if facts.get("content") != "synthetic set" or set(tensors) != {"images", "logits", "log_rate"}:
        raise DataError(
            f"synthetic: {str(path)!r} holds no synthetic set (but {', '.join(sorted(tensors))}); {_ADVICE}"
        )
    synthetic = SyntheticSet(**tensors)
    images, logits = synthetic.images, synthetic.logits
    fits = images.ndim == 4 and logits.ndim == 2 and len(images) == len(logits) > 0 and synthetic.log_rate.ndim == 0
    typed = all(tensor.dtype == torch.float32 for tensor in tensors.values())
    if not (fits and typed and _is_range(facts, images.shape[1])):
        shapes = ", ".join(f"{key} {tensor.dtype} {list(tensor.shape)}" for key, tensor in sorted(tensors.items()))
        raise DataError(
            f"synthetic: {str(path)!r} is no synthetic set ({shapes}); right would be float32 images [M, C, H, W], "
            f"logits [M, classes] and log_rate [], M at least 1, and low <= high for each channel; {_ADVICE}"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise DataError(f"synthetic: {str(path)!r} holds values that are not finite; {_ADVICE}")
    return StoredSet(synthetic, facts)


def load_synthetic(path: Path, dataset: Dataset) -> StoredSet:
    """The set in the file `path` for a run on `dataset`, on its device, and the file's facts but for the normalisation.

    Pixels keep their brightness: images that were normalised by another data set's statistics are normalised anew,
    x ← low + (x − low_file) / (high_file − low_file) · (high − low).

    Raises `DataError` as `read_synthetic`, and `ConfigError` when images or classes do not fit the data set.
    """
    stored = read_synthetic(path)
    synthetic, low, high = stored.synthetic, dataset.low.cpu(), dataset.high.cpu()
    facts = {**stored.facts, "low": low.tolist(), "high": high.tolist()}
    shape, classes = tuple(synthetic.images.shape[1:]), synthetic.logits.shape[1]
    if (shape, classes) != (dataset.image_shape, dataset.classes):
        raise ConfigError(
            f"synthetic: {str(path)!r} holds images {_text(shape)} of {classes} classes (learned on "
            f"{stored.facts.get('dataset')}); {dataset.name} has images {_text(dataset.image_shape)} of "
            f"{dataset.classes} classes: give a set that was learned on such images"
        )
    images = synthetic.images
    if stored.facts != facts:
        low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
        images = low + stored.pixels() * (high - low)
    device = dataset.low.device
    moved = SyntheticSet(images.to(device), synthetic.logits.to(device), synthetic.log_rate.to(device))
    return StoredSet(moved, facts)


def _is_range(facts: dict[str, Any], channels: int) -> bool:
    """Whether `low` and `high` are numbers, one a channel, and in order."""
    low, high = (facts.get(key) for key in ("low", "high"))
    if not (isinstance(low, list) and isinstance(high, list) and len(low) == len(high) == channels):
        return False
    return all(isinstance(value, float) for value in low + high) and all(map(float.__le__, low, high))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
