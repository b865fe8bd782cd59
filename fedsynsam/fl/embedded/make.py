"""Make the data set that ships inside the package: a class-balanced subset of Fashion-MNIST.

    python fedsynsam/fl/embedded/make.py [FOLDER WITH THE FOUR IDX FILES]

The first 1,000 training and the first 200 test images of each class, in their original order, are kept as uint8
arrays in an .npz inside an .xz (a plain .npz is 15 % larger). Prints the SHA-256 that `fedsynsam/fl/data.py` expects.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import sys
from pathlib import Path

import numpy as np

from fedsynsam.fl.data_files import DEBIAN_FOLDER, read_idx

TRAIN_PER_CLASS, TEST_PER_CLASS = 1000, 200
TARGET = Path(__file__).with_name("fashion_mnist_subset.npz.xz")


def balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Ascending indices of the first `per_class` examples of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(10)]))


def main(folder: Path) -> None:
    """Write the subset beside this script and print its digest."""
    arrays = {}
    for part, prefix, per_class in (("train", "train", TRAIN_PER_CLASS), ("test", "t10k", TEST_PER_CLASS)):
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        keep = balanced(labels, per_class)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = images[keep], labels[keep]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    blob = lzma.compress(buffer.getvalue(), preset=9)
    TARGET.write_bytes(blob)
    print(f"{TARGET.name}: {len(blob)} bytes, SHA-256 {hashlib.sha256(blob).hexdigest()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN_FOLDER)
