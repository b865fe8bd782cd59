"""The pictures of docs/kernels.md are drawn from what the library does."""

from __future__ import annotations

import torch

from benchmarks import pictures


def test_codes_lie_as_the_wire_format_says():
    half = pictures.BUCKET // 2
    assert pictures.places_of_codes() == [(i % half, i // half * pictures.BITS) for i in range(pictures.BUCKET)]


def test_the_bracket_holds_the_threshold():
    magnitudes = torch.randn(500_000, generator=torch.Generator().manual_seed(3)).abs()
    lo, hi, threshold = pictures.bracket(magnitudes, 5000)
    assert hi is None
    assert lo <= threshold
    lo, hi, threshold = pictures.bracket(magnitudes, 50_000)
    assert hi is not None
    assert lo <= threshold < hi


def test_both_are_written(tmp_path):
    pictures.main(["--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"vertical-layout.png", "topk-bracket.png"}
