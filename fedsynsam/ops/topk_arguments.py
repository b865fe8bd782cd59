"""What `topk`, `chunk_topk` and the index coding accept: one typed error per wrong argument, before any launch."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ArgumentError
from .arguments import DTYPES, check_rows, check_tensor

MAX_ELEMENTS = 2**31 - 1  # of a row: indices are int32


def check_update(update: Any, residual: Any) -> None:
    """Check the inputs that both forms of top-k share."""
    check_rows("update", update, DTYPES)
    if update.shape[1] > MAX_ELEMENTS:
        raise ArgumentError(f"update has rows of {update.shape[1]} elements; expected at most {MAX_ELEMENTS}")
    if residual is not None:
        check_tensor("residual", residual, update.shape, (torch.float32,), update.device)


def check_count(name: str, value: Any, low: int, high: int) -> None:
    """Check that `value` is an integer in [low, high]."""
    # torch.SymInt is no int, but a length that torch.compile traces.
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ArgumentError(f"{name} is {value!r}; expected an integer")
    if not low <= value <= high:
        raise ArgumentError(f"{name} is {value}; expected {low} to {high}")


def check_density(density: Any) -> None:
    """Check that `density` is a number in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ArgumentError(f"density is {density!r}; expected a number above 0 and at most 1")
