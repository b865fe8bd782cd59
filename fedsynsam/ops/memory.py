"""Memory for large rows."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backend

LARGE = 1 << 24  # bytes


def empty_row(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialized row [n]; on a CPU a large one asks for huge pages, which makes its first write faster."""
    row = torch.empty(n, dtype=dtype, device=device)
    if row.is_cpu and row.nbytes >= LARGE and backend.extension is not None:
        backend.extension.prefer_huge_pages(row.data_ptr(), row.nbytes)
    return row
