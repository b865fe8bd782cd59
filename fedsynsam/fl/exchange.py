"""The exchange of a round: each rank's uploads go to all ranks, as encoded payloads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsynsam.errors import FedSynSamError
from fedsynsam.fl.client import Upload
from fedsynsam.fl.distributed import Group, describe, raise_described
from fedsynsam.wire import Payload


def exchange(
    group: Group, train: Callable[[], list[Upload]], like: Tensor, spec: str, stop: Callable[[], int | None]
) -> tuple[list[Upload], int | None]:
    """The uploads of the whole cohort in the order of clients, of which `train` gives those of this rank.

    Payloads travel as `Payload.encode` made them, whether or not the run asks for `encode`, and are checked against
    `like` [P] and `spec` when they come in; a client's record stays where it was trained. Descents, which a server
    would work out from all that came before, travel as they are. The second result is the signal that `stop` told of on
    any rank. An error that `train` raises on one rank is raised on all.
    """
    if group.size == 1:
        return train(), stop()
    header: dict[str, Any]
    try:
        mine = train()
        header = {"uploads": [_facts(up) for up in mine]}
        blobs = [blob for up in mine for blob in _blobs(up)]
    except FedSynSamError as error:
        mine, header, blobs = [], {"uploads": [], "error": describe(error)}, []
    text = json.dumps({**header, "stop": stop()}).encode()
    frames = group.all_gather(b"".join([len(text).to_bytes(8, "little"), text, *blobs]))
    uploads, stopped = {up.client_id: up for up in mine}, None
    for rank, frame in enumerate(frames):
        end = 8 + int.from_bytes(frame[:8], "little")
        header = json.loads(frame[8:end])
        if "error" in header:
            raise_described(header["error"])
        stopped = stopped or header["stop"]
        for facts in header["uploads"]:
            lengths = facts.pop("lengths")
            ends = list(itertools.accumulate(lengths, initial=end))
            if rank != group.rank:
                blobs = [frame[first:last] for first, last in itertools.pairwise(ends)]
                descent = _vector(blobs.pop(), like) if facts.pop("has_descent") else None
                payload, *more = (Payload.decode(blob, like, spec) for blob in blobs)
                mu = more[0] if more else None
                uploads[facts["client_id"]] = Upload(
                    payload=payload, mu=mu, descent=descent, record={}, **facts  # not ours to know
                )  # fmt: skip
            end = ends[-1]
    return [uploads[client] for client in sorted(uploads)], stopped


def _blobs(up: Upload) -> list[bytes]:
    """A client's payloads, then its descent if there is one."""
    descent = [] if up.descent is None else [up.descent.cpu().numpy().tobytes()]
    return [payload.encode() for payload in up.payloads] + descent


def _facts(up: Upload) -> dict[str, object]:
    """What goes with a client's blobs, as JSON values."""
    names = ("client_id", "wire_bytes", "loss", "num_examples", "cosines")
    lengths = [payload.wire_bytes for payload in up.payloads] + ([] if up.descent is None else [up.descent.nbytes])
    return {**{name: getattr(up, name) for name in names}, "lengths": lengths, "has_descent": up.descent is not None}


def _vector(blob: bytes, like: Tensor) -> Tensor:
    """The float32 values in `blob`, where `like` is."""
    return torch.frombuffer(bytearray(blob), dtype=torch.float32).to(like.device)
