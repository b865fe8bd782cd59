"""Splits of the training set over clients: independent and identical, Dirichlet over labels, or shards of labels."""

from __future__ import annotations

import numpy as np

from fedsynsam.errors import DataError

DIRICHLET_DRAWS = 200  # a draw that leaves a client empty is thrown away this many times before giving up


def partition(
    kind: str,
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.1,
    shards_per_client: int = 2,
) -> list[np.ndarray]:
    """Ascending example indices of each client: disjoint, complete, and none empty.

    `labels` are integers [n]. Raises `DataError` when some client would stay empty, saying what to change.
    """
    if clients > len(labels):
        raise DataError(f"{clients} clients cannot share {len(labels)} training examples; use at most {len(labels)}")
    if kind == "iid":
        parts = [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), clients)]
    elif kind == "dirichlet":
        parts = _dirichlet(labels, clients, rng, alpha)
    elif kind == "shards":
        parts = _shards(labels, clients, rng, shards_per_client)
    else:
        raise DataError(f"partition: unknown value {kind!r}; known: dirichlet, iid, shards")
    return [part.astype(np.int64) for part in parts]


def _dirichlet(labels: np.ndarray, clients: int, rng: np.random.Generator, alpha: float) -> list[np.ndarray]:
    """Each class is split by its own draw p ~ Dirichlet(alpha, …, alpha) over the clients, so sizes differ too.

    alpha = inf is the limit: p = 1/clients, so that all clients hold every class alike, to one example.
    """
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(DIRICHLET_DRAWS):
        owner = np.empty(len(labels), np.int64)
        for members in by_class:
            if alpha == np.inf:
                chunks = np.array_split(rng.permutation(members), clients)
                for client, chunk in zip(rng.permutation(clients), chunks, strict=True):
                    owner[chunk] = client
                continue
            shares = rng.dirichlet(np.full(clients, alpha))
            if not np.isfinite(shares).all():  # a tiny alpha underflows to 0/0: the limit is one owner
                shares = np.eye(clients)[rng.integers(clients)]
            edges = np.floor(np.cumsum(shares)[:-1] * len(members) + 0.5).astype(np.int64)
            shuffled = rng.permutation(members)
            for client, chunk in enumerate(np.split(shuffled, edges)):
                owner[chunk] = client
        counts = np.bincount(owner, minlength=clients)
        if counts.min() > 0:
            return np.split(np.argsort(owner, kind="stable"), np.cumsum(counts)[:-1])
    raise DataError(
        f"alpha={alpha} over {clients} clients left a client without examples in each of {DIRICHLET_DRAWS} draws "
        f"(at last {int((counts == 0).sum())} of them); use a larger alpha, fewer clients, or partition iid"
    )


def _shards(labels: np.ndarray, clients: int, rng: np.random.Generator, per_client: int) -> list[np.ndarray]:
    """Examples sorted by label are cut into equal shards; each client gets `per_client` of them at random."""
    total = clients * per_client
    if total > len(labels):
        raise DataError(
            f"shards_per_client={per_client} for {clients} clients makes {total} shards of {len(labels)} examples; "
            f"use at most {len(labels) // clients} shards a client"
        )
    order = rng.permutation(len(labels))  # which examples of a label fall in which shard is random, too
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], total)
    deal = rng.permutation(total).reshape(clients, per_client)
    return [np.sort(np.concatenate([shards[shard] for shard in hand])) for hand in deal]
