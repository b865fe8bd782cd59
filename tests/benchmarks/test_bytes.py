"""The model of the bytes that kernels move: complete, about kernels that exist, and the same in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bytes as model
from benchmarks.bytes import ENTRIES, FLOORS, Sizes
from fedsynsam.ops import backend, index_words

ROOT = Path(__file__).resolve().parent.parent.parent
SERVED = [(op, name) for op, names in backend.GPU_BACKENDS.items() for name in names]


@pytest.mark.parametrize(("op", "name"), SERVED)
def test_every_kernel_that_serves_is_counted_and_exists(op, name):
    entries = [entry for entry in ENTRIES if (entry.op, entry.backend) == (op, name)]
    assert entries, f"benchmarks/bytes.py has no entry for {op} on {name}"
    for entry in entries:
        source = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob(entry.source))
        for launch in entry.launches:
            assert launch.name[0] == "(" or launch.name in source


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.floor} {e.backend} {e.when}".strip())
@pytest.mark.parametrize("u", [2, 4])
def test_no_kernel_moves_less_than_the_floor(entry, u):
    for sizes in (Sizes(u=u), Sizes(u=u, n=1000, k=1000, b=1, B=2048, C=1), Sizes(u=u, k=100_000, b=8, C=100)):
        moved = sum(sizes.value(launch.moves) for launch in entry.launches)
        assert moved >= sizes.value(FLOORS[entry.floor]) > 0


def test_floors_of_the_design():
    at = {key: Sizes().value(formula) for key, formula in FLOORS.items()}
    assert (at["topk"], at["chunk_topk"]) == (12, 12)
    assert at["quantize"] == 4 + 0.5 + 4 / 512
    assert at["quantize + residual"] == 12 + 0.5 + 4 / 512
    assert at["aggregate_codes"] == 32 * (0.5 + 4 / 512) + 4
    assert at["aggregate_sparse"] == 4 + 32 * 0.01 * 8
    assert (at["sam_perturb"], at["sam_perturb mixed"]) == (16, 24)
    assert (at["sam_step"], at["sam_step + momentum"]) == (12, 20)


@pytest.mark.parametrize(("n", "k"), [(1000, 1000), (100_000_000, 1_000_000), (25_600_000, 25_600)])
def test_the_floor_of_index_coding_is_indices_and_words(n, k):
    expected = 3 * 4 * (k + index_words(n, k))
    assert model.floor("decode_indices", 3, Sizes(n=n, k=k)) == pytest.approx(expected)


def test_further_payloads_read_and_write_the_sum_again():
    entry = next(entry for entry in ENTRIES if (entry.op, entry.backend) == ("aggregate_sparse", "cuda"))
    (kernel,) = entry.launches
    at = [Sizes(C=count, k=0).value(kernel.moves) for count in (1, 32, 33, 64, 65)]
    assert at == [4, 4, 12, 12, 20]


def test_the_documentation_has_the_table():
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    begin, end = "<!-- python -m benchmarks.bytes -->\n", "\n<!-- end -->"
    assert text.split(begin)[1].split(end)[0] == model.table()
