"""The aggregation kernels."""

from __future__ import annotations

from .. import launch
from ..triton import aggregate
from .case import Case


def cases() -> list[Case]:
    """Sums of few and of as many payloads as a launch takes, of every width."""
    found = []
    counts = (1, launch.PAYLOADS)
    for bits, bucket, count in ((4, 512, 1), *((bits, 512, launch.PAYLOADS) for bits in (1, 2, 4, 8)), (4, 4096, 32)):
        size = launch.sum_codes(bucket)
        signature = {"codes": ("*u8",) * count, "scales": ("*fp32",) * count, "weights": "*fp32", "out": "*fp32"}
        signature |= {"n": "i32", "buckets": "i32", "count": "i32"}
        flags = {"ACCUMULATE": False, "COUNT": count, "BITS": bits, "BUCKET": bucket, "GROUP": size.group}
        name = f"aggregate sum_codes {bits} {bucket} of {count}"
        found.append(Case(name, aggregate.sum_codes, signature, flags, size.num_warps))
    sums = launch.SPARSE_SUM
    for count in counts:
        signature = {"indices": ("*i32",) * count, "lengths": ("i32",) * count, "starts": "*i32", "edges": "i32"}
        flags = {"RANGE": sums.range, "COUNT": count, "LANES": sums.search_lanes}
        found.append(Case(f"aggregate find_starts of {count}", aggregate.find_starts, signature, flags, 4))
        signature = {"indices": ("*i32",) * count, "values": ("*fp32",) * count, "starts": "*i32", "weights": "*fp32"}
        signature |= {"out": "*fp32", "n": "i32", "edges": "i32", "count": "i32"}
        for accumulate in (False, True):
            flags = {"ACCUMULATE": accumulate, "COUNT": count, "RANGE": sums.range, "LANES": sums.lanes}
            name = f"aggregate sum_sparse of {count}{' accumulate' if accumulate else ''}"
            found.append(Case(name, aggregate.sum_sparse, signature, flags, 4))
    return found
