"""Seeds: published SplitMix64 outputs, golden row seeds, and the typed errors."""

import pytest

from fedsynsam.errors import ArgumentError
from fedsynsam.ops import row_seed, splitmix64

GAMMA = 0x9E3779B97F4A7C15


def test_splitmix64_gives_the_published_outputs():
    # Outputs of the reference generator started at 0 and at 1234567; the state grows by GAMMA a step.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix64(1234567 + i * GAMMA) for i in range(4)] == published


def test_row_seed_is_three_chained_finalizers():
    mixed = splitmix64(splitmix64(splitmix64(7) ^ 3) ^ 11)
    assert row_seed(7, 3, 11) % 2**64 == mixed


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0, 0, 0), 2558736989570252433),
        ((7, 0, 0), -7205399239080518280),
        ((0, 7, 0), 5651114593729759386),
        ((0, 0, 7), -3186261426046161420),
        ((-1, 2**63, 2**64 - 1), 444711501337971438),
    ],
)
def test_row_seed_never_changes(numbers, expected):
    assert row_seed(*numbers) == expected


def test_row_seeds_fit_int64_and_differ():
    seeds = [row_seed(seed, round, client) for seed in range(8) for round in range(32) for client in range(32)]
    assert len(set(seeds)) == len(seeds)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert min(seeds) < 0 < max(seeds)


def test_negative_numbers_count_modulo_two_to_the_64():
    assert row_seed(-1, 0, 0) == row_seed(2**64 - 1, 0, 0)


@pytest.mark.parametrize("bad", [1.0, "1", None, True, 2**64, -(2**63) - 1])
@pytest.mark.parametrize("name", ["seed", "round", "client"])
def test_row_seed_names_the_bad_number(name, bad):
    numbers = {"seed": 1, "round": 2, "client": 3, name: bad}
    with pytest.raises(ArgumentError, match=f"^{name} must be"):
        row_seed(**numbers)
