"""The synthetic images as a picture: a row for each class."""

from __future__ import annotations

import io
import os
from pathlib import Path

import matplotlib.image
import numpy as np

from ..errors import DataError
from ..fl.synthetic import FILE_NAME, StoredSet, read_synthetic

PICTURE_NAME = "synthetic.png"
ZOOM, GAP = 3, 1  # screen pixels a pixel; white pixels between images


def save_synthetic_picture(run: Path) -> Path | None:
    """Draw the synthetic set in the folder of a run as `synthetic.png`; None if there is none.

    Raises `DataError` when the file is damaged.
    """
    if not (run / FILE_NAME).exists():
        return None
    temporary = run / (PICTURE_NAME + ".part")
    temporary.write_bytes(png(rows_by_class(read_synthetic(run / FILE_NAME))))
    os.replace(temporary, run / PICTURE_NAME)
    return run / PICTURE_NAME


def synthetic_png(run: Path) -> bytes | None:
    """The picture's bytes, or None if the folder holds no set that can be read."""
    try:
        return png(rows_by_class(read_synthetic(run / FILE_NAME)))
    except DataError:
        return None


def rows_by_class(stored: StoredSet) -> list[np.ndarray]:
    """The images as pixels [count, H, W, C], one array for each class that is some image's most likely one."""
    pixels = stored.pixels().permute(0, 2, 3, 1).numpy()
    likely = stored.synthetic.logits.argmax(dim=1).numpy()
    return [pixels[likely == label] for label in np.unique(likely)]


def png(rows: list[np.ndarray]) -> bytes:
    """A PNG of rows of images, each [count, H, W, C] in [0, 1] with one or three channels; short rows end in white."""
    _, height, width, channels = rows[0].shape
    columns = max(len(row) for row in rows)
    grid = np.ones((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), np.float32)
    for place, row in enumerate(rows):
        for column, image in enumerate(row):
            top, left = place * (height + GAP), column * (width + GAP)
            grid[top : top + height, left : left + width] = image
    colored = np.repeat(grid, 3, axis=2) if channels == 1 else grid
    target = io.BytesIO()
    large = colored.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    matplotlib.image.imsave(target, large, format="png")
    return target.getvalue()
