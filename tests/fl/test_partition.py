"""Splits over clients: whatever the labels, each example belongs to exactly one client, and no client is empty."""

import numpy as np
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
    labels = np.repeat(np.arange(10), [8, 15, 22, 29, 36, 43, 50, 57, 64, 71])  # one more than a multiple of 7
    parts = partition("dirichlet", labels, 7, np.random.default_rng(0), alpha=np.inf)
    held = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    assert held.sum() == len(labels)
    assert np.all(np.ptp(held, axis=0) <= 1)
    assert np.ptp(held.sum(axis=1)) < 10, "the one more goes to another client for each class"
