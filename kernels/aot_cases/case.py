"""What one ahead-of-time compilation is given."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """One specialization of a Triton kernel: argument types, constants and warps."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
