"""Small data sets and models, so that a whole federated run takes a second."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset, dataset_from_arrays


def tiny_arrays(seed: int = 0, train: int = 240, test: int = 60, classes: int = 3) -> dict[str, np.ndarray]:
    """Noisy 8x8 patterns, one a class: easy to learn, but not in one step. Stored as uint8, as real images are."""
    rng = np.random.default_rng(seed)
    patterns = rng.uniform(0, 1, (classes, 8, 8))
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        images = patterns[labels] + rng.normal(0, 0.4, (count, 8, 8))
        arrays[f"x_{part}"], arrays[f"y_{part}"] = np.clip(80 * (images + 1), 0, 255).astype(np.uint8), labels
    return arrays


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a run; on tiny tensors more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_dataset() -> Dataset:
    return dataset_from_arrays("tiny", tiny_arrays())


@pytest.fixture
def tiny_npz(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.npz"
    np.savez(path, **tiny_arrays())
    return path


@pytest.fixture
def tiny_config(tiny_npz: Path) -> RunConfig:
    """Six clients, three of them a round, of an 8x8 problem with a 4,355-parameter perceptron."""
    return RunConfig(
        algorithm="fedavg",
        compressor="topk:0.1",
        dataset=str(tiny_npz),
        alpha=1.0,
        clients=6,
        participation=0.5,
        rounds=6,
        local_steps=4,
        batch_size=8,
        model="mlp",
        eval_every=2,
        checkpoint_every=2,
        synthetic_start=2,
        synthetic_window=4,
        synthetic_every=2,
        synthetic_segment=1,
        synthetic_images=2,
        synthetic_steps=6,
        threads=1,
    )
