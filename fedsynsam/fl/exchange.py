"""The exchange of a round: each rank's uploads go to all ranks, as encoded payloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fedsynsam.compress import State
from fedsynsam.errors import FedSynSamError
from fedsynsam.fl.client import Upload
from fedsynsam.fl.distributed import Group, describe, raise_described
from fedsynsam.wire import Payload


def exchange(
    group: Group, train: Callable[[], list[Upload]], like: Tensor, spec: str, stop: Callable[[], int | None]
) -> tuple[list[Upload], int | None]:
    """The uploads of the whole cohort in the order of clients, of which `train` gives those of this rank.

    Payloads travel as `Payload.encode` made them, whether or not the run asks for `encode`, and are checked against
    `like` [P] and `spec` when they come in; a client's residual stays where it was trained. The second result is the
    signal that `stop` told of on any rank. An error that `train` raises on one rank is raised on all.
    """
    if group.size == 1:
        return train(), stop()
    header: dict[str, Any]
    try:
        mine = train()
        header = {"uploads": [_facts(up) for up in mine]}
        payloads = [up.payload.encode() for up in mine]
    except FedSynSamError as error:
        mine, header, payloads = [], {"uploads": [], "error": describe(error)}, []
    text = json.dumps({**header, "stop": stop()}).encode()
    frames = group.all_gather(b"".join([len(text).to_bytes(8, "little"), text, *payloads]))
    uploads, stopped = {up.client_id: up for up in mine}, None
    for rank, frame in enumerate(frames):
        end = 8 + int.from_bytes(frame[:8], "little")
        header = json.loads(frame[8:end])
        if "error" in header:
            raise_described(header["error"])
        stopped = stopped or header["stop"]
        for facts in header["uploads"]:
            length = facts.pop("length")
            if rank != group.rank:
                payload = Payload.decode(frame[end : end + length], like, spec)
                state = State(payload.manifest, None)  # not this rank's to know
                uploads[facts["client_id"]] = Upload(payload=payload, state=state, **facts)
            end += length
    return [uploads[client] for client in sorted(uploads)], stopped


def _facts(up: Upload) -> dict[str, object]:
    """What goes with a payload, as JSON values."""
    names = ("client_id", "wire_bytes", "loss", "num_examples", "cosines")
    return {**{name: getattr(up, name) for name in names}, "length": up.payload.wire_bytes}
