"""The quantize and dequantize kernels."""

from __future__ import annotations

from .. import launch
from ..triton import quantize
from .case import Case


def cases() -> list[Case]:
    """Every width in every dtype at the default bucket, and the largest bucket, with and without a residual."""
    found = []
    outputs = {"codes": "*u8", "scales": "*fp32", "new_residual": "*fp32", "nonfinite": "*u8", "n": "i32"}
    outputs |= {"buckets": "i32", "programs": "i32"}
    for dtype, bits, bucket, residual, norm, rounding in (
        ("fp32", 4, 512, True, "max", "stochastic"),
        ("fp32", 4, 512, False, "max", "stochastic"),
        ("fp32", 4, 512, True, "l2", "stochastic"),
        ("fp32", 4, 512, True, "max", "nearest"),
        ("fp32", 1, 512, True, "max", "stochastic"),
        ("fp32", 2, 512, True, "max", "stochastic"),
        ("fp32", 8, 512, True, "max", "stochastic"),
        ("bf16", 4, 512, True, "max", "stochastic"),
        ("fp16", 4, 512, True, "max", "stochastic"),
        ("fp32", 4, 64, True, "max", "stochastic"),
        ("fp32", 4, launch.MAX_BUCKET, True, "l2", "stochastic"),
    ):
        size = launch.quantize(bucket)
        signature = {"update": f"*{dtype}", "residual": "*fp32", "seeds": "*i64", **outputs}
        flags = {"BITS": bits, "BUCKET": bucket, "GROUP": size.group, "RESIDUAL": residual, "L2": norm == "l2"}
        flags["STOCHASTIC"] = rounding == "stochastic"
        name = f"quantize quantize_buckets {dtype} {bits} {bucket} {norm} {rounding}{' residual' if residual else ''}"
        found.append(Case(name, quantize.quantize_buckets, signature, flags, size.num_warps))
    for residual in (False, True):
        size = launch.quantize(512)
        signature = {"residual": "*i32", "codes": "*u8", "scales": "*fp32", "new_residual": "*i32", "nonfinite": "*u8"}
        signature |= dict.fromkeys(("n", "code_bytes", "buckets", "blocks", "tiles"), "i32")
        flags = {"RESIDUAL": residual, "BLOCK": size.repair_block}
        name = f"quantize rewrite_flagged{' residual' if residual else ''}"
        found.append(Case(name, quantize.rewrite_flagged, signature, flags, 4))
    for bits, bucket in ((1, 512), (2, 512), (4, 512), (8, 512), (4, launch.MAX_BUCKET)):
        size = launch.quantize(bucket)
        signature = {"codes": "*u8", "scales": "*fp32", "out": "*fp32", "n": "i32", "buckets": "i32", "programs": "i32"}
        flags = {"BITS": bits, "BUCKET": bucket, "GROUP": size.group}
        name = f"quantize dequantize_buckets {bits} {bucket}"
        found.append(Case(name, quantize.dequantize_buckets, signature, flags, size.num_warps))
    return found
