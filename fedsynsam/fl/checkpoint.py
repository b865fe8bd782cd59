"""The checkpoint of a run: everything in `ServerState`, in one safetensors file that is replaced atomically.

Tensors lie under `weights`, `previous`, `residual/CLIENT/…`, `last/N`, `evidence/ROUND/…` and `synthetic/…`; the
numbers are JSON in the file's metadata. One file, so that a crash leaves either the old checkpoint or the new one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedsynsam.compress import Compressor
from fedsynsam.errors import CheckpointError, PayloadError, StateError
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.runfolder import write_atomically
from fedsynsam.fl.server import ServerState
from fedsynsam.fl.synthesis import SyntheticSet
from fedsynsam.wire import Payload

FILE = "state.safetensors"
VERSION = "1"


def save_checkpoint(folder: Path, state: ServerState) -> None:
    """Write `state` to `folder`, over an older checkpoint."""
    tensors = {"weights": state.weights}
    if state.previous is not None:
        tensors["previous"] = state.previous
    for client, residual in state.residuals.items():
        tensors |= {f"residual/{client}/{key}": value for key, value in residual.state_dict().items()}
    # clients of the same round share their tensor, which is written once
    distinct = {id(tensor): tensor for tensor in state.last_weights.values()}
    tensors |= {f"last/{place}": tensor for place, tensor in enumerate(distinct.values())}
    places = {key: place for place, key in enumerate(distinct)}
    if state.synthetic is not None:
        tensors |= {f"synthetic/{key}": value for key, value in state.synthetic.tensors().items()}
    if state.evidence is not None:
        tensors |= _evidence_tensors(state.evidence)
    numbers = {
        "round": state.round,
        "synthetic_round": state.synthetic_round,
        "holders": _pairs(state.holders),
        "last": _pairs({client: places[id(tensor)] for client, tensor in state.last_weights.items()}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # clones: weights, evidence and last weights may be one and the same tensor, which the format does not allow
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    blob = save(copies, metadata={"version": VERSION, "numbers": json.dumps(numbers)})
    write_atomically(folder / FILE, blob)


def load_checkpoint(folder: Path, fresh: ServerState, compressor: Compressor) -> ServerState | None:
    """The state in `folder`, or None when there is none; `fresh`, a state of the same run, gives shapes and device.

    Raises `CheckpointError` when the file is damaged or does not belong to this configuration.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device=str(fresh.weights.device)) as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        if metadata.get("version") != VERSION:
            raise CheckpointError(f"{path} has version {metadata.get('version')!r}; this program reads {VERSION!r}")
        return _restore(tensors, json.loads(metadata["numbers"]), fresh, compressor)
    except CheckpointError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, StateError, PayloadError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); start the run anew") from error


def load_weights(folder: Path) -> tuple[Tensor, int]:
    """The global weights [P] in the checkpoint `folder`, on the CPU, and the number of finished rounds."""
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("weights"), int(json.loads(file.metadata()["numbers"])["round"])
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no checkpoint; make a run that keeps one") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _restore(
    tensors: dict[str, Tensor], numbers: dict[str, Any], fresh: ServerState, compressor: Compressor
) -> ServerState:
    weights = tensors["weights"]
    if weights.shape != fresh.weights.shape:
        raise CheckpointError(f"the checkpoint has {weights.numel()} weights, the model {fresh.weights.numel()}")
    state = ServerState(weights, round=int(numbers["round"]), synthetic_round=int(numbers["synthetic_round"]))
    state.previous = tensors.get("previous")
    state.holders = dict(numbers["holders"])
    state.last_weights = {client: tensors[f"last/{place}"] for client, place in numbers["last"]}
    for client, part in _grouped(tensors, "residual").items():
        state.residuals[client] = compressor.init(weights).load_state_dict(part)
    synthetic = {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith("synthetic/")}
    if synthetic:
        state.synthetic = SyntheticSet(**synthetic)
    if fresh.evidence is not None:
        state.evidence = Evidence(fresh.evidence.window, fresh.evidence.payloads_kept)
        for round_number, part in sorted(_grouped(tensors, "evidence").items()):
            state.evidence.weights[round_number] = part.pop("weights")
            blobs = [bytes(part[key].cpu().numpy()) for key in sorted(part, key=int)]
            state.evidence.payloads[round_number] = [Payload.decode(blob, like=weights) for blob in blobs]
    return state


def _evidence_tensors(evidence: Evidence) -> dict[str, Tensor]:
    tensors = {}
    for round_number, weights in evidence.weights.items():
        tensors[f"evidence/{round_number}/weights"] = weights
        for place, payload in enumerate(evidence.payloads[round_number]):
            blob = torch.frombuffer(bytearray(payload.encode()), dtype=torch.uint8)
            tensors[f"evidence/{round_number}/{place}"] = blob
    return tensors


def _grouped(tensors: dict[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    """Tensors called `prefix/NUMBER/rest`, as {number: {rest: tensor}}."""
    groups: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "/"):
            _, number, rest = key.split("/", 2)
            groups.setdefault(int(number), {})[rest] = value
    return groups


def _pairs(table: dict[int, int]) -> list[list[int]]:
    """A dict with integer keys as JSON can hold it."""
    return [[key, value] for key, value in sorted(table.items())]
