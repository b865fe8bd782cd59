"""The leads on learning the synthetic set: their loop is the library's, and each changes what it says."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import leads
from benchmarks.leads import LEADS, Lead, Learner
from benchmarks.synthesis_lab import Lab
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.machine import one_thread_each
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.synthesis import UPDATE_SHARE, learn


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight rounds on three noisy patterns of 8x8 pixels."""
    folder, rng = tmp_path_factory.mktemp("leads"), np.random.default_rng(0)
    patterns, labels = rng.uniform(0, 1, (3, 8, 8)), np.arange(120) % 3
    images = (patterns[labels] + rng.normal(0, 0.3, (120, 8, 8))).astype(np.float32)
    np.savez(folder / "tiny.npz", x_train=images, y_train=labels, x_test=images[::2], y_test=labels[::2])
    config = RunConfig(
        dataset=str(folder / "tiny.npz"), clients=6, participation=0.5, alpha=1.0, rounds=8, local_steps=4,
        batch_size=8,
        compressor="topk:0.1", model="mlp", eval_every=4, threads=1, synthetic_start=2, synthetic_every=2,
        synthetic_segment=1, synthetic_images=2, synthetic_steps=6,
    )  # fmt: skip
    Simulation(config, folder / "run").run()
    return folder / "run"


@pytest.fixture(scope="module")
def lab(run: Path) -> Lab:
    with one_thread_each():
        return Lab(run)


def small(lead: Lead) -> Lead:
    """The lead on the fixture's scale, on which each of its options still makes a difference."""
    return dataclasses.replace(
        lead, steps=lead.steps // 50, images=lead.images // 5 + 1, segment=lead.segment // 5, grid=min(lead.grid, 4),
        smooth=min(lead.smooth, 4), payloads={2: 1, 4: 2, 10: 3}[lead.payloads], recent=-(-lead.recent // 12),
    )  # fmt: skip


ANCESTORS = {
    "updates, equal shares of labels": "displacements",
    "updates, shares from the bias": "updates, equal shares of labels",
    "updates, shares from the rows": "updates, equal shares of labels",
    "updates, 600 steps": "updates, shares from the rows",
    "10 payloads": "updates, 600 steps, starts up to 5 updates away",
    "bound: and true shares of labels": "10 payloads",
    "bound: gradients of training data": "displacements",
}


def ancestor(name: str) -> str:
    """The lead that this one differs from in one option."""
    if name.startswith("and "):
        return "updates, 600 steps, starts up to 5 updates away"
    shorter = name.rpartition(", ")[0]
    return ANCESTORS.get(name) or (shorter if shorter in LEADS else shorter.rpartition(", ")[0])


def test_the_plain_loop_is_the_librarys(lab: Lab) -> None:
    config = lab.config
    lead = Lead(updates=UPDATE_SHARE, steps=6, drift=config.synthetic_drift, segment=1, images=2, payloads=10)
    with one_thread_each():
        own, (images, labels) = Learner(lab, lead, 4).learn(None)
        theirs, _ = learn(config, lab.module, lab.dataset, lab.evidence(4), None, 4)
        assert torch.equal(images, theirs.images)
        assert torch.equal(labels, theirs.batch[1])
        again, _ = Learner(lab, lead, 6).learn(own)
        renewed, _ = learn(config, lab.module, lab.dataset, lab.evidence(6), theirs, 6)
        assert torch.equal(again[0], renewed.images)


def test_true_mixes_are_those_of_the_clients_whose_payloads_were_kept(lab: Lab) -> None:
    for round_number in range(1, 9):
        for place, update in enumerate(lab.updates[round_number]):
            true, guessed = lab.true_mix(round_number, place), lab.label_mix(update)
            assert float(true.sum()) == pytest.approx(1.0)
            if true.max() > 0.8:
                assert int(guessed.argmax()) == int(true.argmax())


@pytest.mark.parametrize("name", [name for name in LEADS if name != "displacements"])
def test_each_lead_changes_the_set_or_its_use(lab: Lab, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads, "FROM", 3)
    monkeypatch.setattr(leads, "EVERY", 2)
    lead, plain = LEADS[name], LEADS[ancestor(name)]
    options = [field.name for field in dataclasses.fields(Lead)]
    differing = [option for option in options if getattr(lead, option) != getattr(plain, option)]
    assert len(differing) == (2 if name == "updates, equal shares of labels" else 1), differing
    with one_thread_each():
        before, after = (leads.mean_cosine(lab, small(item))[0] for item in (plain, lead))
    assert -1 <= after <= 1
    assert after != before, differing


def test_the_command_writes_a_row_a_lead(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads, "FROM", 3)
    monkeypatch.setattr(leads, "LEADS", {name: small(lead) for name, lead in LEADS.items()})
    out = tmp_path / "leads.csv"
    for chosen in ("displacements; displacements, two pieces a step", "displacements"):
        monkeypatch.setattr(sys, "argv", ["x", str(run), "--out", str(out), "--leads", chosen])
        with one_thread_each():
            leads.main()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["lead"] for row in rows] == ["displacements", "displacements, two pieces a step", "displacements"]
    assert rows[0]["cosine"] == rows[2]["cosine"] != rows[1]["cosine"]
    assert {row["compressor"] for row in rows} == {"topk:0.1"}
