"""The compressors: everything, the largest values, quantized values, or the largest values quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import ops
from ..errors import SpecError
from ..ops.memory import empty_row
from ..wire.spec import Stage, check_order, parse
from .base import Compressor, Outcome, SingleStage


@dataclass(frozen=True)
class Identity(SingleStage):
    """Sends the update as it is, in float32: the spec `none`."""

    word: ClassVar[str] = "none"
    residual: ClassVar[bool] = False  # type: ignore[misc]  # nothing is ever left unsent

    def apply(self, rows: Tensor, residual: Tensor | None, seeds: Tensor) -> Outcome:
        # copied: a payload must not follow its update's changes
        values = empty_row(rows.numel(), torch.float32, rows.device).view_as(rows).copy_(rows)
        return Outcome({"values": values}, None, _nonfinite(values))


@dataclass(frozen=True)
class TopK(SingleStage):
    """Sends the largest magnitudes of the whole update, k = max(1, ⌊density·n + ½⌋): the spec `topk:DENSITY`.

    Ties go to the first in flat order. The rest is kept in the residual and added to the next update
    (error feedback: Stich et al. 2018, "Sparsified SGD with memory"), unless `residual` is False.
    """

    word: ClassVar[str] = "topk"
    density: float
    residual: bool = True

    def apply(self, rows: Tensor, residual: Tensor | None, seeds: Tensor) -> Outcome:
        kept = ops.topk(rows, residual, k=self.plan.count_sent(rows.shape[1]))
        return _sparse_outcome(kept, self.residual)


@dataclass(frozen=True)
class ChunkTopK(SingleStage):
    """Sends the largest magnitudes of each chunk of the flat update: the spec `chunktopk:DENSITY`.

    Each full chunk sends max(1, ⌊density·chunk + ½⌋), the short last one its own share. One pass over memory where
    `TopK` needs two, and no tensor can starve the others of the whole budget.
    """

    word: ClassVar[str] = "chunktopk"
    density: float
    chunk: int = 4096
    residual: bool = True

    def apply(self, rows: Tensor, residual: Tensor | None, seeds: Tensor) -> Outcome:
        kept = ops.chunk_topk(rows, residual, density=self.density, chunk=self.chunk)
        return _sparse_outcome(kept, self.residual)


@dataclass(frozen=True)
class Quantize(SingleStage):
    """Sends every value in `bits` bits, with a scale for each `bucket` of values: the spec `quantize:BITS`.

    2^(bits-1) - 1 levels a side between 0 and the scale, which is the bucket's largest magnitude (`norm` "max") or
    its L2 norm ("l2": QSGD, Alistarh et al. 2017); one bit sends ±scale. Stochastic rounding is unbiased (to 2^-16
    of a level), so it needs no residual, and the residual is off by default: with one or two bits the error can be
    larger than the value itself, quantization is then no contraction, and error feedback diverges. Switch it on for
    8 or 4 bits or for rounding to nearest.
    """

    word: ClassVar[str] = "quantize"
    bits: int
    bucket: int = 512
    norm: str = "max"
    rounding: str = "stochastic"
    residual: bool = False

    def apply(self, rows: Tensor, residual: Tensor | None, seeds: Tensor) -> Outcome:
        done = self.quantize(rows, residual, seeds)
        tensors = {"scales": done.scales, "codes": done.codes}
        return Outcome(tensors, done.residual if self.residual else None, done.nonfinite)

    def quantize(self, rows: Tensor, residual: Tensor | None, seeds: Tensor) -> ops.Quantized:
        """Return codes, scales and residual of the rows [C, n]."""
        return ops.quantize(rows, seeds, residual, bits=self.bits, bucket=self.bucket, norm=self.norm,
                            rounding=self.rounding)  # fmt: skip


@dataclass(frozen=True)
class Chain(Compressor):
    """Sends the largest values, quantized: the spec `topk:DENSITY+quantize:BITS`.

    The sparsifier comes first and owns the residual, which takes in the quantization error too: at a sent position
    it is a − x̂, so that what is sent and what is left add up to what there was.
    """

    sparsifier: TopK | ChunkTopK
    quantizer: Quantize

    def __post_init__(self) -> None:
        for stage in (self.sparsifier, self.quantizer):
            if not isinstance(stage, SingleStage):
                raise SpecError(f"a chain is made of two compressors of one stage, not of {stage!r}")
        check_order(self.stages)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.sparsifier.stages + self.quantizer.stages

    @property
    def residual(self) -> bool:  # type: ignore[override]
        """Whether what is not sent is kept: the sparsifier's choice."""
        return self.sparsifier.residual

    def apply(self, rows: Tensor, residual: Tensor | None, seeds: Tensor) -> Outcome:
        kept = self.sparsifier.apply(rows, residual, seeds)
        indices, values = kept.tensors["indices"], kept.tensors["values"]
        zeros = torch.zeros_like(values) if self.residual else None
        done = self.quantizer.quantize(values, zeros, seeds)
        if kept.residual is not None:  # a new tensor of the sparsifier's, 0 at the sent positions
            kept.residual.scatter_(1, indices.long(), done.residual)
        tensors = {"indices": indices, "scales": done.scales, "codes": done.codes}
        return Outcome(tensors, kept.residual, kept.nonfinite)


def _nonfinite(rows: Tensor) -> Tensor:
    """Return for each of `rows` [C, n] whether it holds NaN or infinity, bool [C]."""
    if len(rows) != 1 or rows.numel() == 0:
        return ~torch.isfinite(rows).all(dim=1)
    extremes = torch.stack(torch.aminmax(rows))  # NaN wins over every number; no temporary of the row's size
    return ~torch.isfinite(extremes).all()[None]


def _sparse_outcome(kept: ops.TopK, keeps_residual: bool) -> Outcome:
    tensors = {"indices": kept.indices, "values": kept.values}
    return Outcome(tensors, kept.residual if keeps_residual else None, kept.nonfinite)


_CLASSES: dict[str, type[SingleStage]] = {cls.word: cls for cls in (Identity, TopK, ChunkTopK, Quantize)}


def compressor(spec: str) -> Compressor:
    """Return the compressor that a spec string names; `str` of it gives the canonical string.

    `none`, `topk:DENSITY`, `chunktopk:DENSITY`, `quantize:BITS`, or a sparsifier `+` a quantizer, each with options in
    brackets: `chunktopk:0.01[chunk=1024]`, `quantize:4[bucket=256,norm=l2,rounding=nearest,residual=true]`.

    Raises SpecError for a word it does not know (listing those it knows), a wrong value, or a wrong order.
    """
    built: list[Any] = [_CLASSES[stage.word](**stage.values) for stage in parse(spec)]
    return built[0] if len(built) == 1 else Chain(*built)
