"""The chunk_topk kernels."""

from __future__ import annotations

from .. import launch
from ..triton import topk
from .case import Case


def cases() -> list[Case]:
    """The default chunk in every dtype, the largest one, and a short one."""
    found = []
    outputs = {"indices": "*i32", "values": "*fp32"}
    sizes = {"n": "i32", "chunk": "i32", "chunks": "i32", "full": "i32", "k_row": "i32", "k_chunk": "i32"}
    for dtype, chunk, residual in (
        ("fp32", 4096, True),
        ("fp32", 4096, False),
        ("bf16", 4096, True),
        ("fp16", 4096, True),
        ("fp32", launch.MAX_CHUNK, True),
        ("fp32", 64, True),
    ):
        size = launch.chunk_topk(chunk)
        signature = {"update": f"*{dtype}", "residual": "*fp32", **outputs, "new_residual": "*fp32"}
        signature |= {"nonfinite": "*u8", **sizes, "k_tail": "i32"}
        flags = {"RESIDUAL": residual, "BLOCK": size.block}
        name = f"topk select_chunk {dtype} {size.block}{' residual' if residual else ''}"
        found.append(Case(name, topk.select_chunk, signature, flags, size.num_warps))
    for residual in (False, True):
        signature = {"residual": "*i32", **outputs, "new_residual": "*i32", "nonfinite": "*u8", "n": "i32", "k": "i32"}
        signature |= {"blocks": "i32", "tiles": "i32"}
        flags = {"RESIDUAL": residual, "BLOCK": launch.chunk_topk(1).repair_block}
        name = f"topk rewrite_flagged{' residual' if residual else ''}"
        found.append(Case(name, topk.rewrite_flagged, signature, flags, 4))
    return [*found, *(case.of_ones() for case in found if " 4096" not in case.name and " 8192" not in case.name)]
