"""Splits over clients: whatever the labels, each example belongs to exactly one client, and no client is empty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsynsam.errors import DataError
from fedsynsam.fl.partition import partition


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["dirichlet", "iid", "shards"]),
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    clients=st.integers(1, 12),
    alpha=st.floats(0.05, 100),
    shards=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_disjoint_complete_and_not_empty_or_refused(kind, labels, clients, alpha, shards, seed) -> None:
    labels = np.array(labels)

    def split() -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return partition(kind, labels, clients, rng, alpha=alpha, shards_per_client=shards)

    try:
        parts = split()
    except DataError:
        assert clients * shards > len(labels) or kind == "dirichlet" or clients > len(labels)
        return
    assert len(parts) == clients
    assert min(len(part) for part in parts) > 0
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(np.all(np.diff(part) > 0) for part in parts)
    assert all(np.array_equal(a, b) for a, b in zip(parts, split(), strict=True))


def classes_per_client(kind: str, **options: float) -> float:
    labels = np.arange(5000) % 10
    parts = partition(kind, labels, 20, np.random.default_rng(0), **options)
    return float(np.mean([len(np.unique(labels[part])) for part in parts]))


def test_heterogeneity_follows_the_kind_and_alpha() -> None:
    assert classes_per_client("iid") == 10
    assert classes_per_client("dirichlet", alpha=100.0) == 10
    assert classes_per_client("dirichlet", alpha=0.1) < 6
    assert classes_per_client("shards", shards_per_client=2) <= 3


def test_at_infinite_alpha_every_client_holds_every_class_alike() -> None:
    labels = np.repeat([0, 1, 2], [100, 57, 8])
    parts = partition("dirichlet", labels, 7, np.random.default_rng(0), alpha=np.inf)
    held = np.array([np.bincount(labels[part], minlength=3) for part in parts])
    assert np.array_equal(held.sum(axis=0), [100, 57, 8])
    assert np.all(np.ptp(held, axis=0) <= 1)
    assert len(np.unique(held.sum(axis=1))) > 1, "the client that gets one more is another for each class"


def test_dirichlet_proportions_have_the_right_mean_square() -> None:
    """For p ~ Dirichlet(α, …, α) over C clients, E[Σp²] = (α + 1)/(αC + 1)."""
    alpha, clients, count = 0.5, 5, 2000
    rng = np.random.default_rng(1)
    labels = np.zeros(count, int)
    squares = []
    for _ in range(400):
        sizes = np.array([len(part) for part in partition("dirichlet", labels, clients, rng, alpha=alpha)])
        squares.append(np.square(sizes / count).sum())
    # conditioning on no client being empty lowers it a little; the spread of the mean is below 0.01
    assert abs(np.mean(squares) - (alpha + 1) / (alpha * clients + 1)) < 0.03


@pytest.mark.parametrize(
    ("kind", "clients", "options", "message"),
    [
        ("iid", 11, {}, "11 clients cannot share 10"),
        ("shards", 5, {"shards_per_client": 3}, "use at most 2 shards"),
        ("dirichlet", 10, {"alpha": 1e-3}, "larger alpha, fewer clients, or partition iid"),
        ("odd", 2, {}, "known: dirichlet, iid, shards"),
    ],
)
def test_impossible_splits_say_what_to_change(kind, clients, options, message) -> None:
    with pytest.raises(DataError, match=message):
        partition(kind, np.zeros(10, int), clients, np.random.default_rng(0), **options)
