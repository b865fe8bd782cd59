"""The pictures of docs/concepts.md show what the page says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import concepts

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


@pytest.mark.parametrize("spec", ["topk:0.1", "topk:0.1+quantize:4"])
def test_the_residual_makes_up_for_what_was_left_out(spec: str) -> None:
    without = spec.replace("topk:0.1", "topk:0.1[residual=false]")
    assert concepts.feedback_errors(spec)[-1] < 0.1 < 0.5 < concepts.feedback_errors(without)[-1]


def test_a_small_entry_waits_and_is_sent_whole() -> None:
    kept, sums = concepts.small_entry("topk:0.1")
    assert sums[10] == 0.0
    assert max(kept) > 4
    np.testing.assert_allclose(np.array(kept) + np.array(sums), 0.15 * np.arange(1, 61), rtol=1e-4)


def test_sam_leaves_the_sharp_minimum_where_sgd_enters_it() -> None:
    def distance(place: list[float]) -> float:
        return float(np.hypot(*np.subtract(place, concepts.SHARP)))

    perturbed, after, plain = concepts.sam_step(concepts.START)
    start = list(concepts.START)
    assert np.hypot(*np.subtract(perturbed, start)) == pytest.approx(concepts.RHO, rel=1e-5)
    assert distance(plain) < distance(start) < distance(after)
    places, here, nearby = concepts.along_the_line()
    assert abs(places[int(here.argmin())]) < 0.1
    assert abs(places[int(nearby.argmin())] - 1) < 0.1


@pytest.mark.parametrize("name", sorted(concepts.PICTURES))
def test_pictures_are_drawn_and_committed(name: str) -> None:
    assert concepts.PICTURES[name]().get_axes()
    assert (IMAGES / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert f"images/{name}.png" in (IMAGES.parent / "concepts.md").read_text()
