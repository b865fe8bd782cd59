"""Data sets as tensors: loaded, validated, normalised, and ready to be indexed by a client's batch."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsynsam.errors import DataError
from fedsynsam.fl.data_files import Arrays, read_cifar, read_fashion_mnist, read_npz
from fedsynsam.fl.tensorfile import checksum
from fedsynsam.ops import backend
from fedsynsam.ops.network import gather_images

EMBEDDED = "fashion_mnist_subset.npz.xz"
EMBEDDED_SHA256 = "9ab9f1f5d706ff9ccedeb279c758eb79752a78981c4dcd1a9c90db79c93308bc"


@dataclass(frozen=True)
class Images:
    """Images [N, channels, H, W] as they were read, a quarter of their float32 size if they are uint8.

    `images[which]` (a slice, or int64 indices of any shape [*]) gives f32 [*, channels, H, W], normalised:
    (stored − shift) / scale. It lies in memory as [*, H, W, channels] ("channels last"), in which convolutions run
    faster.
    """

    stored: Tensor  # uint8 or f32 [N, H, W, channels]
    shift: Tensor  # f32 [channels]: mean of the training images, in the unit of `stored`
    scale: Tensor  # f32 [channels]: their standard deviation

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, which: Tensor | np.ndarray | slice) -> Tensor:
        if isinstance(which, slice):
            raw = self.stored[which]
        else:
            indices = torch.as_tensor(which, device=self.device)
            if self.gathers_here:
                return gather_images(self.stored, indices, self.shift, self.scale).movedim(-1, -3)
            raw = self.stored.index_select(0, indices.reshape(-1)).view(*indices.shape, *self.stored.shape[1:])
        return raw.sub(self.shift).div_(self.scale).movedim(-1, -3)

    @property
    def gathers_here(self) -> bool:
        """Whether the extension gathers these images."""
        ours = self.stored.dtype == torch.uint8 and self.stored.is_contiguous()
        return ours and self.stored.is_cpu and backend.choose("gather_images", self.device) == "cpu"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, channels, height, width."""
        count, height, width, channels = self.stored.shape
        return count, channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.stored.device

    def to(self, device: torch.device) -> Images:
        """The same images on `device`."""
        return Images(self.stored.to(device), self.shift.to(device), self.scale.to(device))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images, normalised by the training set's mean and deviation when they are taken; labels int64 [N].

    `low` and `high` [channels] bound the normalised values that a pixel can take.
    """

    name: str
    x_train: Images
    y_train: Tensor
    x_test: Images
    y_test: Tensor
    classes: int
    low: Tensor
    high: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.x_train.shape[1:]

    def crc32(self) -> str:
        """CRC-32 of all images, as they are stored, and labels; eight hexadecimal digits."""
        return checksum({
            "x_train": self.x_train.stored, "y_train": self.y_train,
            "x_test": self.x_test.stored, "y_test": self.y_test,
        })  # fmt: skip

    def to(self, device: torch.device) -> Dataset:
        """The same data on `device`."""
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, (Tensor, Images))
        }
        return dataclasses.replace(self, **moved)


def load_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """The data set `name` (see `RunConfig.dataset`); raises `DataError` saying how to get it when it is missing."""
    if name == "fashion-mnist-subset":
        arrays = _read_embedded()
    elif name == "fashion-mnist":
        arrays = read_fashion_mnist(data_dir)
    elif name in ("cifar10", "cifar100"):
        arrays = read_cifar(name, data_dir)
    elif name.endswith(".npz"):
        arrays = read_npz(Path(name))
    else:
        raise DataError(
            f"unknown data set {name!r}; known: fashion-mnist-subset, fashion-mnist, cifar10, cifar100, *.npz"
        )
    return dataset_from_arrays(name, arrays)


def dataset_from_arrays(name: str, arrays: Arrays) -> Dataset:
    """A `Dataset` from `x_train y_train x_test y_test`; raises `DataError` naming the array that is wrong.

    Images are [N, H, W], [N, H, W, channels] or [N, channels, H, W] (1 or 3 channels), uint8 or floating; labels are
    integers [N] from 0.
    """
    images = {part: _checked_images(f"x_{part}", arrays[f"x_{part}"], name) for part in ("train", "test")}
    labels = {part: _checked_labels(f"y_{part}", arrays[f"y_{part}"], len(images[part]), name) for part in images}
    if images["train"].shape[1:] != images["test"].shape[1:]:
        shapes = " and ".join(str(tuple(part.shape[1:])) for part in images.values())
        raise DataError(f"{name}: x_train and x_test hold images of different shapes {shapes}")
    if images["train"].dtype != images["test"].dtype:
        kinds = f"x_train is {arrays['x_train'].dtype}, x_test {arrays['x_test'].dtype}"
        raise DataError(f"{name}: {kinds}; give both in the same unit, as uint8 or as a floating type")
    classes = int(labels["train"].max()) + 1
    if classes > len(labels["train"]):
        raise DataError(
            f"{name}: y_train holds label {classes - 1}; labels count the classes from 0, so that each is below the "
            f"number of training examples, {len(labels['train'])}"
        )
    if classes < 2:
        raise DataError(f"{name}: y_train holds only label 0; at least two classes are needed")
    if int(labels["test"].max()) >= classes:
        raise DataError(f"{name}: y_test holds label {int(labels['test'].max())}, y_train only 0 to {classes - 1}")
    train = images["train"]
    values = train.float().numpy()  # numpy in float64: the same statistics whatever the number of PyTorch threads
    mean = values.mean(axis=(0, 1, 2), dtype=np.float64)
    deviation = np.maximum(values.std(axis=(0, 1, 2), dtype=np.float64), 1e-6)
    shift, scale = (torch.from_numpy(part.astype(np.float32)) for part in (mean, deviation))
    normal = {part: Images(stored, shift, scale) for part, stored in images.items()}
    return Dataset(
        name=name,
        x_train=normal["train"],
        y_train=labels["train"],
        x_test=normal["test"],
        y_test=labels["test"],
        classes=classes,
        low=(train.amin(dim=(0, 1, 2)) - shift) / scale,
        high=(train.amax(dim=(0, 1, 2)) - shift) / scale,
    )


def channels_last(images: Tensor) -> Tensor:
    """`images` [N, channels, H, W] with the memory of [N, H, W, channels], unambiguously even for one channel."""
    last = images.permute(0, 2, 3, 1)
    # with one channel both orders count as contiguous: `contiguous` would keep the strides of the other
    return last.clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _read_embedded() -> Arrays:
    blob = resources.files("fedsynsam.fl").joinpath("embedded").joinpath(EMBEDDED).read_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    if digest != EMBEDDED_SHA256:
        raise DataError(
            f"{EMBEDDED} is damaged: its SHA-256 is {digest}, expected {EMBEDDED_SHA256}; reinstall fedsynsam"
        )
    with np.load(io.BytesIO(lzma.decompress(blob)), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _checked_images(key: str, array: np.ndarray, name: str) -> Tensor:
    """uint8 or f32 [N, H, W, channels]."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{name}: {key} has dtype {array.dtype}; expected uint8 or a floating type")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise DataError(
            f"{name}: {key} has shape {array.shape}; expected non-empty [N, H, W], [N, H, W, channels] or "
            "[N, channels, H, W] with 1 or 3 channels"
        )
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    images = torch.from_numpy(np.array(array.transpose(0, 2, 3, 1), dtype=dtype, order="C"))
    if dtype == np.float32 and not bool(torch.isfinite(images).all()):
        raise DataError(f"{name}: {key} holds values that are not finite")
    return images


def _checked_labels(key: str, array: np.ndarray, count: int, name: str) -> Tensor:
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise DataError(f"{name}: {key} is {array.dtype} {array.shape}; expected integers of shape ({count},)")
    labels = torch.from_numpy(array.astype(np.int64))
    if int(labels.min()) < 0:
        raise DataError(f"{name}: {key} holds label {int(labels.min())}; labels start at 0")
    return labels
