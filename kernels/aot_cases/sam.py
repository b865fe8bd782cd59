"""The sam kernels."""

from __future__ import annotations

from .. import launch
from ..triton import sam
from .case import Case


def cases() -> list[Case]:
    """The sam kernels at their largest block, in float32 and bfloat16, with every option on and off."""
    size = launch.sam(1 << 22)
    block = {"BLOCK": size.block}
    found = []
    for dtype in ("fp32", "bf16"):
        source = {"weights": "*fp32", "gradient": f"*{dtype}", "synthetic": f"*{dtype}"}
        scalars = {"beta": "fp32", "keep": "fp32"}
        for mixed, adaptive in ((False, False), (True, False), (True, True)):
            name = f"{dtype}{' mixed' if mixed else ''}{' adaptive' if adaptive else ''}"
            flags = {"MIXED": mixed, "ADAPTIVE": adaptive, **block}
            signature = {**source, "partials": "*fp64", "n": "i32", "chunks": "i32", **scalars}
            found.append(Case(f"sam chunk_squares {name}", sam.chunk_squares, signature, flags, size.num_warps))
            signature = {**source, "norm": "*fp32", "partials": "*fp64", "out": "*fp32", "n": "i32", "chunks": "i32"}
            signature |= {"count": "i32", **scalars, "rho": "fp32"}
            flags = {**flags, "PARTIALS": size.inline_partials}
            found.append(Case(f"sam perturb_chunk {name}", sam.perturb_chunk, signature, flags, size.num_warps))
        signature = {"weights": "*fp32", "gradient": f"*{dtype}", "correction": "*fp32", "momentum_buffer": "*fp32"}
        signature |= {"total": "i64", "lr": "fp32", "weight_decay": "fp32", "momentum": "fp32"}
        for everything in (False, True):
            flags = {"DECAY": everything, "CORRECTED": everything, "MOMENTUM": everything, **block}
            name = f"sam step_chunk {dtype}{' decay corrected momentum' if everything else ''}"
            found.append(Case(name, sam.step_chunk, signature, flags, size.num_warps))
    signature = {"partials": "*fp64", "norm": "*fp32", "chunks": "i32"}
    for store in (False, True):
        flags = {"STORE_SUM": store, "BLOCK": sam.FINISH_BLOCK}
        found.append(Case(f"sam finish_norm {'sum' if store else 'norm'}", sam.finish_norm, signature, flags, 4))
    return found
