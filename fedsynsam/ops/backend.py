"""Which implementations ("backends") of the operations exist here, and which one a call uses.

Backends: `reference` (plain PyTorch, on a CPU and on CUDA), `cpu` (the C++ extension), `triton` and `cuda` (GPU).
A call takes the fastest usable backend for its tensors' device unless `use_backend` names another; a backend
that cannot serve raises `BackendError` with the reason. Nothing ever falls back silently: where the extension
was not built, `reference` *is* the default of the CPU, and `fedsynsam info` says so.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import BackendError

NAMES = ("reference", "cpu", "triton", "cuda")

# The GPU backends that have each operation, the faster one first; the others refuse with a reason instead of running
# elsewhere.
GPU_BACKENDS: dict[str, tuple[str, ...]] = {
    "topk": ("cuda",),
    "chunk_topk": ("cuda", "triton"),
    "encode_indices": ("cuda", "triton"),
    "decode_indices": ("cuda", "triton"),
    "quantize": ("cuda", "triton"),
    "dequantize": ("cuda", "triton"),
    "aggregate_sparse": ("cuda", "triton"),
    "aggregate_codes": ("cuda", "triton"),
    "sam_norm": ("cuda", "triton"),
    "sam_perturb": ("cuda", "triton"),
    "sam_step": ("cuda", "triton"),
}

_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("fedsynsam_backend", default=None)


def build_record() -> dict[str, Any]:
    """Return what the build wrote down: `extension`, `cuda` (or None), `openmp`, and `notes` on what was left out.

    Empty where no build took place, as in a checkout that is only on the path.
    """
    path = Path(__file__).parent.parent / "_build.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def _load_extension() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("fedsynsam._C"), ""
    except ImportError as error:  # not built, or built for another Python or libc: the reason is shown by `info`
        record = build_record()
        why = "; ".join(record["notes"]) if record and not record["extension"] else str(error)
        return None, f"the C++ extension is not usable: {why}"


extension, _extension_reason = _load_extension()


def why_not(name: str) -> str | None:
    """Return the reason why backend `name` is unusable on this machine, or None if it is usable."""
    if name == "reference":
        return None
    if name == "cpu":
        return None if extension is not None else _extension_reason
    if name == "cuda":
        if extension is None:
            return _extension_reason
        if not extension.cuda_built:
            notes = "; ".join(build_record().get("notes", []))
            return (
                f"the C++ extension was built without CUDA ({notes or 'no CUDA compiler found, or FEDSYNSAM_CUDA=0'})"
            )
        return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"
    raise BackendError(f"backend {name!r} does not exist; known backends: {', '.join(NAMES)}")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operation inside the `with` block on backend `name`; threads that are started in it are not inside.

    Raises BackendError at once if the backend is unknown or unusable here; a call inside the block whose
    tensors lie on a device that the backend does not serve raises BackendError too.
    """
    if (reason := why_not(name)) is not None:
        raise BackendError(f"backend {name!r} cannot be used here: {reason}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(op: str, device: torch.device) -> str:
    """Return the name of the backend that serves `op` for tensors on `device`."""
    forced = _forced.get()
    if device.type == "cpu":
        if forced in ("triton", "cuda"):
            raise BackendError(f"backend {forced!r} cannot run {op} on CPU tensors; move them to a CUDA device")
        return forced or ("cpu" if extension is not None else "reference")
    if forced == "cpu":
        raise BackendError(f"backend 'cpu' cannot run {op} on {device.type} tensors; move them to the CPU")
    served = GPU_BACKENDS.get(op, ())
    if forced in ("triton", "cuda") and forced not in served:
        raise BackendError(f"backend {forced!r} has no {op} kernel; use 'reference' on this device")
    if forced is not None:
        return forced
    return next((name for name in served if why_not(name) is None), "reference")
