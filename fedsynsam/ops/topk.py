"""Exact top-k with a residual, of whole rows or of chunks: `topk`, `chunk_topk`.

    a = float32(update) + residual
    emit the k largest |a| of each row (or of each chunk), ties to the lowest index
    new residual = a, with 0 where a value was emitted

so that what was sent plus the new residual is update + old residual exactly. All backends give the same bits, for
every number of threads; kernels/reference/topk.py is the definition.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.reference import topk as reference
from . import backend
from .arguments import DTYPES, check_apart, check_outputs
from .extension import launch, loaded
from .library import nothing, register
from .topk_arguments import (
    MAX_ELEMENTS,
    check_count,
    check_density,
    check_update,
)

# ---- public functions ----


class TopK(NamedTuple):
    """What `topk` and `chunk_topk` return for rows [C, n]."""

    indices: Tensor  # int32 [C, k], ascending
    values: Tensor  # float32 [C, k], the bits of a
    residual: Tensor  # float32 [C, n], a without the emitted values
    nonfinite: Tensor  # bool [C]: the row holds NaN or infinity and nothing of it is emitted


def topk(update: Tensor, residual: Tensor | None = None, *, k: int, out: TopK | None = None) -> TopK:
    """Emit the k largest magnitudes of each row of a = float32(update) + residual.

    update: [C, n] float32, bfloat16 or float16, n < 2³¹. residual: float32 [C, n], never changed; None: a is the
    update. k: 0 to n. out: contiguous tensors as in `TopK` that overlap neither an input nor each other.

    Magnitudes are compared exactly (denormals count, −0 ties with +0), ties go to the lowest index. A row in which
    `a` holds NaN or infinity (also by overflow of the sum) is flagged: indices 0..k−1, values 0, and its new residual
    is the old one bit for bit (zeros without one); other rows are unaffected.

    Not differentiable. Raises ArgumentError for a wrong shape, dtype, device or value.
    """
    check_update(update, residual)
    check_count("k", k, 0, update.shape[1])
    arguments = (*_contiguous(update, residual), k)
    if out is None:
        return TopK(*_topk(*arguments))
    check_outputs(TopK._fields, out, _layout(update, k), update.device)
    _topk_out(*arguments, *out)
    return TopK(*out)


def chunk_topk(
    update: Tensor, residual: Tensor | None = None, *, density: float, chunk: int = 4096, out: TopK | None = None
) -> TopK:
    """Emit the largest magnitudes of each chunk of `chunk` elements of each row: `topk` on every chunk by itself.

    A full chunk keeps count_kept(chunk, density) elements and a short last one count_kept(its length, density);
    k = chunk_count_kept(n, density, chunk) in all, and the indices count from the row's begin. density: in (0, 1].
    Otherwise as `topk`; a value that is not finite flags the whole row.
    """
    check_update(update, residual)
    check_density(density)
    check_count("chunk", chunk, 1, MAX_ELEMENTS)
    arguments = (*_contiguous(update, residual), float(density), chunk)
    if out is None:
        return TopK(*_chunk_topk(*arguments))
    k = chunk_count_kept(update.shape[1], density, chunk)
    check_outputs(TopK._fields, out, _layout(update, k), update.device)
    _chunk_topk_out(*arguments, *out)
    return TopK(*out)


def count_kept(n: int, density: float) -> int:
    """Return how many of n elements are kept: ⌊density·n + ½⌋, at least 1 and at most n; 0 if n is 0."""
    return 0 if n == 0 else min(n, max(1, math.floor(density * n + 0.5)))


def chunk_count_kept(n: int, density: float, chunk: int) -> int:
    """Return how many of n elements are kept in chunks of `chunk`: the sum of `count_kept` over the chunks."""
    return n // chunk * count_kept(chunk, density) + count_kept(n % chunk, density)


def _contiguous(update: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # Detached: selection has no gradient, and autograd would only warn about that.
    return update.detach().contiguous(), None if residual is None else residual.detach().contiguous()


# ---- backends: contiguous tensors of checked shapes ----


def _topk_into(update: Tensor, residual: Tensor | None, k: int, *outputs: Tensor) -> None:
    _check_apart(update, residual, outputs)
    chosen = backend.choose("topk", update.device)
    if chosen == "cpu":
        loaded().topk_cpu(*_pointers(update, residual), k, *_addresses(outputs), torch.get_num_threads())
    elif chosen == "cuda":
        scratch = _scratch(update, update.shape[1])
        launch("topk", update, *_pointers(update, residual), k, *_addresses(outputs), scratch.data_ptr())
    else:
        _copy(reference.topk(update, residual, k), outputs)


def _chunk_topk_into(update: Tensor, residual: Tensor | None, density: float, chunk: int, *outputs: Tensor) -> None:
    _check_apart(update, residual, outputs)
    kept = chunk, count_kept(chunk, density), count_kept(update.shape[1] % chunk, density)
    chosen = backend.choose("chunk_topk", update.device)
    if chosen == "cpu":
        loaded().chunk_topk_cpu(*_pointers(update, residual), *kept, *_addresses(outputs), torch.get_num_threads())
    elif chosen == "cuda":
        scratch = _scratch(update, chunk)
        launch("chunk_topk", update, *_pointers(update, residual), *kept, *_addresses(outputs), scratch.data_ptr())
    elif chosen == "triton":
        from ..kernels.triton import topk as kernels  # only here: the package works without Triton

        with torch.cuda.device_of(update):
            kernels.chunk_topk_into(update, residual, *kept, *outputs)
    else:
        _copy(reference.chunk_topk(update, residual, *kept), outputs)


def _scratch(update: Tensor, chunk: int) -> Tensor:
    """Memory of the CUDA kernels, held until the launch; afterwards PyTorch's allocator keeps it for the stream."""
    rows, n = update.shape
    words: int = loaded().topk_cuda_scratch(rows, n, chunk)
    return torch.empty(words, dtype=torch.int32, device=update.device)


def _pointers(update: Tensor, residual: Tensor | None) -> tuple[int, ...]:
    address = 0 if residual is None else residual.data_ptr()
    return update.data_ptr(), DTYPES[update.dtype], address, *update.shape


def _addresses(outputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(output.data_ptr() for output in outputs)


def _copy(results: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    for result, output in zip(results, outputs, strict=True):
        output.copy_(result)


def _check_apart(update: Tensor, residual: Tensor | None, outputs: tuple[Tensor, ...]) -> None:
    named = {f"out.{name}": output for name, output in zip(TopK._fields, outputs, strict=True)}
    check_apart(named, {"update": [update], "residual": [residual]})


# ---- operators ----


def _layout(update: Tensor, k: int) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shapes and dtypes of the outputs, in the order of `TopK`."""
    rows, n = update.shape
    return ((rows, k), torch.int32), ((rows, k), torch.float32), ((rows, n), torch.float32), ((rows,), torch.bool)


def _empty(update: Tensor, k: int) -> tuple[Tensor, ...]:
    return tuple(update.new_empty(shape, dtype=dtype) for shape, dtype in _layout(update, k))


def _topk_empty(update: Tensor, residual: Tensor | None, k: int) -> tuple[Tensor, ...]:
    return _empty(update, k)


def _topk_new(*arguments: Any) -> tuple[Tensor, ...]:
    outputs = _topk_empty(*arguments)
    _topk_into(*arguments, *outputs)
    return outputs


def _chunk_topk_empty(update: Tensor, residual: Tensor | None, density: float, chunk: int) -> tuple[Tensor, ...]:
    return _empty(update, chunk_count_kept(update.shape[1], density, chunk))


def _chunk_topk_new(*arguments: Any) -> tuple[Tensor, ...]:
    outputs = _chunk_topk_empty(*arguments)
    _chunk_topk_into(*arguments, *outputs)
    return outputs


_INPUTS = "Tensor update, Tensor? residual"
_OUTPUTS = "Tensor(a!) indices, Tensor(b!) values, Tensor(c!) new_residual, Tensor(d!) nonfinite"
_RESULT = "(Tensor, Tensor, Tensor, Tensor)"
_topk = register(f"topk({_INPUTS}, SymInt k) -> {_RESULT}", _topk_new, _topk_empty)
_topk_out = register(f"topk_out({_INPUTS}, SymInt k, {_OUTPUTS}) -> ()", _topk_into, nothing)
_chunk_topk = register(
    f"chunk_topk({_INPUTS}, float density, int chunk) -> {_RESULT}", _chunk_topk_new, _chunk_topk_empty
)
_chunk_topk_out = register(
    f"chunk_topk_out({_INPUTS}, float density, int chunk, {_OUTPUTS}) -> ()", _chunk_topk_into, nothing
)
