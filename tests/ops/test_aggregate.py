"""aggregate_sparse and aggregate_codes: float64 oracles, the exact order of additions, errors, out=, threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsynsam.errors import ArgumentError
from fedsynsam.ops import aggregate_codes, aggregate_sparse, dequantize, quantize
from fedsynsam.ops.backend import use_backend, why_not

needs_cpu = pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
BITS = (1, 2, 4, 8)


def sparse_payloads(n, counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = [torch.randperm(n, generator=generator)[:k].sort().values.int() for k in counts]
    return indices, [torch.randn(k, generator=generator) for k in counts], torch.rand(len(counts), generator=generator)


def code_payloads(n, count, bits, bucket=512, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, n, generator=generator) * torch.rand(count, 1, generator=generator)
    result = quantize(rows, torch.arange(count), bits=bits, bucket=bucket)
    return list(result.codes), list(result.scales), torch.rand(count, generator=generator)


def dense_rows(indices, values, n):
    """The decompressed payloads of a sparse sum, [C, n]."""
    rows = torch.zeros(len(indices), n)
    for row, index, value in zip(rows, indices, values, strict=True):
        row[index.long()] = value
    return rows


def in_order(rows, weights, start):
    """acc + (w * x), payload after payload, in numpy float32."""
    total = start.numpy().copy()
    for row, weight in zip(rows.numpy(), weights.numpy(), strict=True):
        total = total + weight * row
    return torch.from_numpy(total)


def assert_close_to_float64(total, rows, weights):
    # A product and a sum a payload: C roundings of at most 2^-24 each on partial sums of at most Σ|w x|, and one each.
    exact = (weights.double()[:, None] * rows.double()).sum(dim=0)
    bound = (len(weights) + 1) * 2.0**-24 * (weights.double()[:, None] * rows.double()).abs().sum(dim=0)
    assert ((total.double() - exact).abs() <= bound + 1e-45).all()


def same_bits(left, right):
    np.testing.assert_array_equal(left.numpy().view(np.uint32), right.numpy().view(np.uint32))


# ---- sums ----

COUNTS = [[], [0], [1], [5, 0, 300], [50] * 32]


@backends
@pytest.mark.parametrize("counts", COUNTS, ids=lambda c: f"{len(c)}payloads")
@pytest.mark.parametrize("n", [300, 8192, 8193, 20011])
def test_sparse_sum(backend, n, counts):
    indices, values, weights = sparse_payloads(n, counts)
    with use_backend(backend):
        total = aggregate_sparse(indices, values, weights, n=n)
    rows = dense_rows(indices, values, n)
    assert_close_to_float64(total, rows, weights)
    # Only entries that are sent are added, but adding w * 0 to the others changes no bit of a sum that starts at +0.
    same_bits(total, in_order(rows, weights, torch.zeros(n)))


@backends
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [0, 1, 3, 32])
def test_codes_sum(backend, count, bits):
    for n, bucket in ((1, 8), (100, 8), (511, 16), (513, 512), (4096, 512), (5003, 64), (9000, 8192)):
        codes, scales, weights = code_payloads(n, count, bits, bucket)
        with use_backend(backend):
            total = aggregate_codes(codes, scales, weights, n=n, bits=bits, bucket=bucket)
            rows = [
                dequantize(c[None], s[None], n=n, bits=bits, bucket=bucket) for c, s in zip(codes, scales, strict=True)
            ]
        rows = torch.cat([*rows, torch.zeros(0, n)])
        assert_close_to_float64(total, rows, weights)
        same_bits(total, in_order(rows, weights, torch.zeros(n)))


@backends
def test_nothing_to_add_to(backend):
    empty = torch.zeros(0)
    with use_backend(backend):
        assert aggregate_sparse([empty.int()], [empty], torch.ones(1), n=0).shape == (0,)
        assert aggregate_codes([empty.to(torch.uint8)], [empty], torch.ones(1), n=0, bits=4).shape == (0,)


@backends
def test_a_weight_of_zero_adds_nothing(backend):
    indices, values, weights = sparse_payloads(500, [100, 100])
    codes, scales, _ = code_payloads(500, 2, 4)
    with use_backend(backend):
        off, alone = torch.tensor([weights[0], 0.0]), weights[:1]
        same_bits(
            aggregate_sparse(indices, values, off, n=500), aggregate_sparse(indices[:1], values[:1], alone, n=500)
        )
        same_bits(
            aggregate_codes(codes, scales, off, n=500, bits=4),
            aggregate_codes(codes[:1], scales[:1], alone, n=500, bits=4),
        )
        assert not aggregate_sparse(indices, values, torch.zeros(2), n=500).any()


@backends
@pytest.mark.parametrize("cut", [0, 1, 3, 6])
def test_accumulating_in_two_calls_equals_one(backend, cut):
    indices, values, weights = sparse_payloads(10_000, [100, 9000, 0, 1, 500, 77])
    codes, scales, _ = code_payloads(10_000, 6, 4)
    with use_backend(backend):
        first = aggregate_sparse(indices[:cut], values[:cut], weights[:cut], n=10_000)
        aggregate_sparse(indices[cut:], values[cut:], weights[cut:], n=10_000, out=first, accumulate=True)
        same_bits(first, aggregate_sparse(indices, values, weights, n=10_000))
        first = aggregate_codes(codes[:cut], scales[:cut], weights[:cut], n=10_000, bits=4)
        aggregate_codes(codes[cut:], scales[cut:], weights[cut:], n=10_000, bits=4, out=first, accumulate=True)
        same_bits(first, aggregate_codes(codes, scales, weights, n=10_000, bits=4))


@backends
def test_accumulate_starts_from_what_is_there(backend):
    start = torch.randn(700, generator=torch.Generator().manual_seed(9))
    indices, values, weights = sparse_payloads(700, [70, 7])
    codes, scales, _ = code_payloads(700, 2, 2)
    with use_backend(backend):
        out = start.clone()
        assert aggregate_sparse(indices, values, weights, n=700, out=out, accumulate=True) is out
        same_bits(out, in_order(dense_rows(indices, values, 700), weights, start))
        out = start.clone()
        assert aggregate_codes(codes, scales, weights, n=700, bits=2, out=out, accumulate=True) is out
        rows = dequantize(torch.stack(codes), torch.stack(scales), n=700, bits=2)
        same_bits(out, in_order(rows, weights, start))


@backends
def test_dirty_outputs_are_overwritten(backend):
    indices, values, weights = sparse_payloads(9000, [10, 900])
    codes, scales, _ = code_payloads(9000, 2, 4)
    with use_backend(backend):
        out = torch.full((9000,), float("nan"))
        assert aggregate_sparse(indices, values, weights, n=9000, out=out) is out
        same_bits(out, aggregate_sparse(indices, values, weights, n=9000))
        out = torch.full((9000,), float("nan"))
        assert aggregate_codes(codes, scales, weights, n=9000, bits=4, out=out) is out
        same_bits(out, aggregate_codes(codes, scales, weights, n=9000, bits=4))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_sparse_payloads_sum_like_the_reference(data):
    n = data.draw(st.integers(1, 60))
    value = st.floats(width=32, min_value=-(2.0**60), max_value=2.0**60)
    payload = st.dictionaries(st.integers(0, n - 1), value, max_size=n)
    payloads = [sorted(p.items()) for p in data.draw(st.lists(payload, max_size=5))]
    indices = [torch.tensor([i for i, _ in p], dtype=torch.int32) for p in payloads]
    values = [torch.tensor([v for _, v in p]) for p in payloads]
    weights = torch.tensor(data.draw(st.lists(value, min_size=len(payloads), max_size=len(payloads))))
    total = aggregate_sparse(indices, values, weights, n=n)
    with use_backend("reference"):
        same_bits(total, aggregate_sparse(indices, values, weights, n=n))


# ---- threads, memory, trust ----


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_cpu
def test_the_number_of_threads_changes_no_bit(threads):
    n = 300_007
    sparse, codes = sparse_payloads(n, [3000, 0, 150_000]), code_payloads(n, 5, 4)
    totals = []
    for count in (1, 2, 3):
        threads(count)
        totals.append((aggregate_sparse(*sparse, n=n), aggregate_codes(*codes, n=n, bits=4)))
    for one, other in zip(totals[0] * 2, totals[1] + totals[2], strict=True):
        same_bits(one, other)


@needs_cpu
def test_large_outputs_take_the_streaming_path_to_the_same_bits():
    n = (1 << 22) + 3
    sparse, codes = sparse_payloads(n, [5000, 700]), code_payloads(n, 2, 4)
    total, summed = aggregate_sparse(*sparse, n=n), aggregate_codes(*codes, n=n, bits=4)
    unaligned = torch.empty(n + 1)[1:]
    same_bits(aggregate_sparse(*sparse, n=n, out=unaligned), total)
    same_bits(total, in_order(dense_rows(*sparse[:2], n), sparse[2], torch.zeros(n)))
    rows = dequantize(torch.stack(codes[0]), torch.stack(codes[1]), n=n, bits=4)
    same_bits(summed, in_order(rows, codes[2], torch.zeros(n)))


@needs_cpu
@pytest.mark.parametrize("bad", [[-1, 3, 9], [3, 50, 2**31 - 1], [9, 3, -(2**31)], [49, 0, 50], [60, 61, 62]])
def test_hostile_indices_never_write_outside(bad):
    guarded = torch.full((150,), 7.0)
    out = guarded[50:100]
    with use_backend("cpu"):
        aggregate_sparse([torch.tensor(bad, dtype=torch.int32)], [torch.ones(3)], torch.ones(1), n=50, out=out)
    assert (guarded[:50] == 7).all()
    assert (guarded[100:] == 7).all()
    assert out.abs().sum() <= 3


# ---- errors ----

INDICES, VALUES = [torch.tensor([1, 5], dtype=torch.int32)], [torch.ones(2)]
CODES, SCALES = [torch.zeros(8, dtype=torch.uint8)], [torch.zeros(2)]
W = torch.ones(1)
COMMON = [
    ({"weights": [1.0]}, "weights is a list"),
    ({"weights": torch.ones(2)}, r"weights has shape \(2,\); expected \(1,\)"),
    ({"weights": torch.ones(1, dtype=torch.float64)}, "weights has dtype torch.float64"),
    ({"n": -3}, "n is -3"),
    ({"n": 2.5}, "n is 2.5"),
    ({"accumulate": True}, "accumulate is True but out was not given"),
    ({"out": torch.zeros(11)}, "out has shape"),
    ({"out": torch.zeros(10, dtype=torch.bfloat16)}, "out has dtype"),
    ({"out": torch.zeros(20)[::2]}, "out is not contiguous"),
    ({"out": torch.zeros(10, device="meta")}, "out is on meta"),
]
SPARSE = [
    ({"values": []}, "indices has 1 entries but values has 0"),
    ({"indices": [torch.tensor([1, 5])]}, r"indices\[0\] has dtype torch.int64; expected torch.int32"),
    ({"indices": [torch.zeros(1, 2, dtype=torch.int32)]}, r"indices\[0\] has shape"),
    ({"indices": [[1, 5]]}, r"indices\[0\] is a list"),
    ({"values": [torch.ones(3)]}, r"values\[0\] has shape \(3,\); expected \(2,\)"),
    ({"values": [torch.ones(2).half()]}, r"values\[0\] has dtype"),
    ({"values": [torch.ones(2, device="meta")]}, r"values\[0\] is on meta"),
]
CODED = [
    ({"scales": []}, "codes has 1 entries but scales has 0"),
    ({"bits": 3}, "bits is 3"),
    ({"bucket": 9}, "bucket is 9"),
    ({"codes": [torch.zeros(7, dtype=torch.uint8)]}, r"codes\[0\] has shape"),
    ({"codes": [torch.zeros(8)]}, r"codes\[0\] has dtype"),
    ({"codes": [CODES[0].to("meta")]}, r"codes\[0\] is on meta"),
    ({"scales": [torch.zeros(1, 2)]}, r"scales\[0\] has shape"),
    ({"scales": [torch.zeros(2).double()]}, r"scales\[0\] has dtype"),
]


@pytest.mark.parametrize(("change", "message"), COMMON + SPARSE, ids=lambda v: v[:40] if isinstance(v, str) else None)
def test_aggregate_sparse_names_the_bad_argument(change, message):
    arguments = {"indices": INDICES, "values": VALUES, "weights": W, "n": 10, **change}
    with pytest.raises(ArgumentError, match=message):
        aggregate_sparse(**arguments)


@pytest.mark.parametrize(("change", "message"), COMMON + CODED, ids=lambda v: v[:40] if isinstance(v, str) else None)
def test_aggregate_codes_names_the_bad_argument(change, message):
    arguments = {"codes": CODES, "scales": SCALES, "weights": W, "n": 10, "bits": 4, "bucket": 8, **change}
    with pytest.raises(ArgumentError, match=message):
        aggregate_codes(**arguments)


@backends
def test_out_may_not_overlap_a_payload(backend):
    out = torch.ones(10)
    with use_backend(backend):
        with pytest.raises(ArgumentError, match="out overlaps values"):
            aggregate_sparse(INDICES, [out[4:6]], W, n=10, out=out)
        with pytest.raises(ArgumentError, match="out overlaps weights"):
            aggregate_sparse(INDICES, VALUES, out[:1], n=10, out=out)
        with pytest.raises(ArgumentError, match="out overlaps scales"):
            aggregate_codes(CODES, [out[:2]], W, n=10, bits=4, bucket=8, out=out)
    assert torch.equal(out, torch.ones(10))


# ---- torch.library ----


def test_opcheck():
    indices, values, weights = sparse_payloads(50, [5, 9])
    codes, scales, _ = code_payloads(50, 2, 4, 8)
    ops, out = torch.ops.fedsynsam, torch.zeros(50)
    torch.library.opcheck(ops.aggregate_sparse.default, (indices, values, weights, 50))
    torch.library.opcheck(ops.aggregate_sparse_out.default, (indices, values, weights, True, out))
    torch.library.opcheck(ops.aggregate_codes.default, (codes, scales, weights, 50, 4, 8))
    torch.library.opcheck(ops.aggregate_codes_out.default, (codes, scales, weights, 4, 8, False, out))
