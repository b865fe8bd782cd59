"""The index coding kernels."""

from __future__ import annotations

from .. import launch
from ..triton import index_coding
from .case import Case


def cases() -> list[Case]:
    """Every kernel, for rows within 32-bit sizes and beyond."""
    encode, decode = launch.ENCODE, launch.decode(1 << 20)
    found = []
    for size in ("i32", "i64"):
        layout = {"low": "i32", "low_mask": "i32", "low_words": size, "high_words": size, "length": size}
        coded = {"words": "*i32", "counts": "*i32", "valid": "*u8", "blocks": "i32", "tiles": "i32"}
        signature = {"indices": "*i32", "words": "*i32", "k": "i32", "blocks": "i32", "high_bits": size, **layout}
        del signature["high_words"]
        flags = {"RANKS": encode.ranks, "WORDS": encode.words}
        name = f"index_coding encode_ranks {size}"
        found.append(Case(name, index_coding.encode_ranks, signature, flags, encode.num_warps))
        signature = {**coded, "low_words": size, "high_words": size, "low_used": "i32", "high_used": "i32"}
        signature["length"] = size
        flags = {"TILE": decode.tile}
        name = f"index_coding count_ones {size}"
        found.append(Case(name, index_coding.count_ones, signature, flags, decode.num_warps))
        signature = {**coded, "indices": "*i32", "n": "i32", "k": "i32", **layout}
        flags = {"BLOCKS": decode.max_blocks, "TILE": decode.tile}
        name = f"index_coding select_ones {size}"
        found.append(Case(name, index_coding.select_ones, signature, flags, decode.num_warps))
    signature = {"valid": "*u8", "indices": "*i32", "k": "i32", "blocks": "i32"}
    flags = {"BLOCK": decode.fill}
    found.append(Case("index_coding fill_illegal", index_coding.fill_illegal, signature, flags, decode.num_warps))
    return [*found, *(case.of_ones() for case in found if not case.name.endswith("i64"))]
