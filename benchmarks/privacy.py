"""How much of a training image is in a synthetic set: `python -m benchmarks.privacy --synthetic FILE --out FOLDER`.

FILE is the `synthetic.safetensors` of a run. Each of its images is compared with every training image of the run's data
set, and so are held-out (test) images and noise: an image that a client's photograph shines through would be nearer to
some training image than strangers are. Three measures, all on pixels in [0, 1]:

- `distance`: root mean square difference of pixels (small is near);
- `correlation`: of pixels (large is near), which forgives contrast and brightness;
- `blurred`: the correlation after averaging blocks of 4x4 pixels, which forgives noise, too.

`privacy.csv` has a row for each kind of image and measure: the median and the extreme over images of the nearest
training image's measure; how often that one has the image's own class; and `train_share`, how often the nearest of all
training and held-out images is a training image, beside `chance`, the share of training images among them, which it
would be for images that know of no single one.
`privacy.png` shows one image of each class beside its nearest training images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as functional
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.provenance import provenance
from benchmarks.rows import write_rows
from fedsynsam.fl.data import Dataset, load_dataset
from fedsynsam.fl.synthesis import first_set
from fedsynsam.fl.synthetic import as_pixels, read_synthetic
from fedsynsam.report.figures import STYLE

MEASURES = ("distance", "correlation", "blurred")
BLOCK = 4  # pixels a side that `blurred` averages
CHUNK = 5000  # images compared at a time


@dataclass(frozen=True)
class Images:
    """Pixels f32 [N, C, H, W] in [0, 1] and classes int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor) -> Images:
        return Images(self.pixels[chosen], self.labels[chosen])


def part_of(dataset: Dataset, part: str) -> Images:
    """The images of `part`, train or test."""
    images, labels = getattr(dataset, f"x_{part}"), getattr(dataset, f"y_{part}")
    return Images(as_pixels(images[:], dataset.low, dataset.high), labels)


def features(pixels: Tensor, measure: str) -> Tensor:
    """Rows [N, D] whose squared distance, or for correlations whose inner product, is the measure."""
    if measure == "distance":
        rows = pixels.flatten(1)
        return rows / rows.shape[1] ** 0.5
    if measure == "blurred":
        pixels = functional.avg_pool2d(pixels, BLOCK)
    rows = pixels.flatten(1)
    return functional.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)


def nearest(queries: Tensor, among: Tensor, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """For each query the value of `measure` for the nearest image of `among`, and its index."""
    rows = features(queries, measure)
    blocks = []
    for block in among.split(CHUNK):
        other = features(block, measure)
        blocks.append(torch.cdist(rows, other) if measure == "distance" else -(rows @ other.T))
    values, indices = torch.cat(blocks, dim=1).min(dim=1)
    return (values if measure == "distance" else -values).numpy(), indices.numpy()


def report(kind: str, queries: Images, train: Images, test: Images) -> list[dict[str, object]]:
    """The rows of `privacy.csv` for one kind of images."""
    both = torch.cat([train.pixels, test.pixels])
    rows = []
    for measure in MEASURES:
        values, indices = nearest(queries.pixels, train.pixels, measure)
        own = (train.labels[torch.from_numpy(indices)] == queries.labels).float().mean()
        # a held-out image would find itself among the held-out ones
        share = "" if kind == "held-out" else f"{(nearest(queries.pixels, both, measure)[1] < len(train)).mean():.2f}"
        extreme = values.min() if measure == "distance" else values.max()
        rows.append(
            {
                "images": kind,
                "count": len(queries),
                "measure": measure,
                "median": f"{np.median(values):.4f}",
                "nearest": f"{extreme:.4f}",
                "own_class": f"{float(own):.2f}",
                "train_share": share,
                "chance": "" if kind == "held-out" else f"{len(train) / len(both):.2f}",
            }
        )
    return rows


def draw(queries: Images, train: Images) -> Figure:
    """One image of each class (columns) above its nearest training images by each measure."""
    chosen = torch.stack([torch.nonzero(queries.labels == label)[0, 0] for label in queries.labels.unique()])
    shown = queries[chosen]
    titles, rows = ["synthetic"], [shown.pixels]
    for measure in MEASURES:
        titles.append(f"nearest training image:\n{measure}")
        rows.append(train.pixels[torch.from_numpy(nearest(shown.pixels, train.pixels, measure)[1])])
    figure = Figure(figsize=(1.6 + 0.9 * len(shown), 4.0), layout="constrained")
    for place, (title, row) in enumerate(zip(titles, rows, strict=True)):
        for column, image in enumerate(row):
            axis = figure.add_subplot(len(rows), len(shown), place * len(shown) + column + 1)
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy().squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.privacy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--synthetic", type=Path, required=True, metavar="FILE", help="synthetic.safetensors of a run")
    parser.add_argument("--data-dir", help="folder with the files of the run's data set")
    parser.add_argument("--held-out", type=int, default=1000, metavar="N", help="held-out images to compare (1000)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of privacy.csv, privacy.png")
    options = parser.parse_args()
    stored = read_synthetic(options.synthetic)
    dataset = load_dataset(stored.facts["dataset"], options.data_dir)
    train, test, rng = part_of(dataset, "train"), part_of(dataset, "test"), np.random.default_rng(0)
    synthetic = Images(stored.pixels(), stored.synthetic.logits.argmax(dim=1))
    noise = first_set(dataset, max(1, len(synthetic) // dataset.classes), rng)  # what learning starts from
    kinds = {
        "synthetic": synthetic,
        "held-out": test[torch.from_numpy(rng.permutation(len(test))[: options.held_out])],
        "noise": Images(as_pixels(noise.images, dataset.low, dataset.high), noise.logits.argmax(dim=1)),
    }
    facts = {f"run_{key}": stored.facts[key] for key in ("dataset", "compressor", "alpha", "seed", "round")}
    facts |= provenance(torch.device("cpu"))
    rows = [{**row, **facts} for kind, queries in kinds.items() for row in report(kind, queries, train, test)]
    write_rows(rows, list(rows[0]), options.out / "privacy.csv")
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        draw(synthetic, train).savefig(options.out / "privacy.png", dpi=110, metadata={"Software": None})
    shown = ("images", "measure", "median", "nearest", "own_class", "train_share", "chance")
    for row in rows:
        print("  ".join(f"{key} {row[key]}" for key in shown))


if __name__ == "__main__":
    main()
