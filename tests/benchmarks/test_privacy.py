"""The privacy measurement finds a leaked training image, and nothing where nothing is."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import privacy
from benchmarks.privacy import Images, nearest, report
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.synthetic import SyntheticSet, save_synthetic


def images(seed: int, count: int) -> Images:
    rng = np.random.default_rng(seed)
    return Images(torch.from_numpy(rng.random((count, 1, 8, 8), dtype=np.float32)), torch.arange(count) % 3)


def found(kind: str, queries: Images) -> dict[str, dict[str, object]]:
    rows = report(kind, queries, images(0, 300), images(1, 300))
    return {str(row["measure"]): row for row in rows}


def test_distances_are_root_mean_squares_and_correlations_forgive_contrast() -> None:
    black, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    assert nearest(black, torch.cat([white, 0.25 * white]), "distance") == (pytest.approx([0.25]), [1])
    image = images(3, 1).pixels
    for measure in ("correlation", "blurred"):
        values, indices = nearest(0.2 + 0.3 * image, torch.cat([1 - image, image]), measure)
        assert (values, indices) == (pytest.approx([1.0], abs=1e-4), [1])


def test_more_training_images_than_a_chunk_are_all_seen(monkeypatch) -> None:
    train = images(0, 300)
    whole = nearest(images(4, 5).pixels, train.pixels, "distance")
    monkeypatch.setattr(privacy, "CHUNK", 7)
    pieces = nearest(images(4, 5).pixels, train.pixels, "distance")
    assert whole[1].tolist() == pieces[1].tolist()
    np.testing.assert_allclose(whole[0], pieces[0], atol=1e-6)


def test_a_leaked_image_is_found_and_strangers_are_at_chance() -> None:
    leaked = found("synthetic", images(0, 300)[torch.arange(60)])
    strangers = found("noise", images(5, 200))
    assert float(leaked["distance"]["nearest"]) < 1e-3 < 0.1 < float(strangers["distance"]["nearest"])
    for measure in privacy.MEASURES:
        assert leaked[measure]["train_share"] == leaked[measure]["own_class"] == "1.00"
        assert strangers[measure]["chance"] == "0.50"
        assert 0.35 < float(strangers[measure]["train_share"]) < 0.65
        assert 0.2 < float(strangers[measure]["own_class"]) < 0.5
    assert found("held-out", images(1, 10))["distance"]["train_share"] == ""


def test_the_command_writes_table_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset("fashion-mnist-subset")
    chosen = torch.stack([torch.nonzero(dataset.y_train == label)[0, 0] for label in range(10)])
    stolen = SyntheticSet(dataset.x_train[chosen], 5 * torch.eye(10), torch.tensor(0.0))
    save_synthetic(tmp_path / "synthetic.safetensors", stolen, dataset, RunConfig(), 25)
    monkeypatch.setattr(
        sys, "argv", ["x", "--synthetic", str(tmp_path / "synthetic.safetensors"), "--out", str(tmp_path / "out"),
                      "--held-out", "20"],
    )  # fmt: skip
    privacy.main()
    with (tmp_path / "out" / "privacy.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = [(row["images"], row["count"]) for row in rows[::3]]
    assert kinds == [("synthetic", "10"), ("held-out", "20"), ("noise", "10")]
    assert float(rows[0]["median"]) < 0.001
    facts = [rows[0][key] for key in ("own_class", "train_share", "chance", "run_round")]
    assert facts == ["1.00", "1.00", "0.83", "25"]
    assert (tmp_path / "out" / "privacy.png").read_bytes().startswith(b"\x89PNG")
