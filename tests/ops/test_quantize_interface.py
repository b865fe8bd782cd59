"""quantize and dequantize as operators: typed errors, out=, torch.library, threads, sizes, and the field's bugs."""

import pytest
import torch

from fedsynsam.errors import ArgumentError, BackendError
from fedsynsam.ops import Quantized, dequantize, quantize
from fedsynsam.ops.backend import use_backend, why_not

needs_cpu = pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
BITS = (1, 2, 4, 8)


def rows(count=3, n=100, dtype=torch.float32):
    return torch.randn(count, n, generator=torch.Generator().manual_seed(n)).to(dtype)


def dirty(rows, n, bits, bucket, with_residual):
    """Output buffers full of garbage."""
    buckets = -(-n // bucket)
    return Quantized(
        torch.full((rows, buckets * bucket * bits // 8), 0xAB, dtype=torch.uint8),
        torch.full((rows, buckets), float("nan")),
        torch.full((rows, n if with_residual else 0), float("nan")),
        torch.ones(rows, dtype=torch.bool),
    )


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


# ---- errors ----

GOOD = {"update": torch.zeros(2, 40), "seeds": torch.zeros(2, dtype=torch.int64), "bits": 4, "bucket": 32}
OUT = dirty(2, 40, 4, 32, False)
BAD = [
    ({"bits": 3}, "bits is 3; expected 1, 2, 4 or 8"),
    ({"bits": 16}, "bits is 16"),
    ({"bits": "4"}, "bits is '4'"),
    ({"bucket": 48}, "bucket is 48; expected a power of two"),
    ({"bucket": 4}, "bucket is 4"),
    ({"bucket": 131072}, "bucket is 131072"),
    ({"bucket": 0}, "bucket is 0"),
    ({"bucket": 512.0}, "bucket is 512.0"),
    ({"norm": "l1"}, "norm is 'l1'; expected one of max, l2"),
    ({"rounding": "up"}, "rounding is 'up'; expected one of stochastic, nearest"),
    ({"update": [1.0]}, "update is a list"),
    ({"update": torch.zeros(40)}, "update has shape"),
    ({"update": torch.zeros(2, 4, 10)}, "update has shape"),
    ({"update": torch.zeros(2, 40, dtype=torch.float64)}, "update has dtype torch.float64"),
    ({"update": torch.zeros(2, 40, dtype=torch.int32)}, "update has dtype torch.int32"),
    ({"seeds": 7}, "seeds is a int; expected a tensor"),
    ({"seeds": torch.zeros(2, dtype=torch.int32)}, "seeds has dtype torch.int32; expected torch.int64"),
    ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds has shape \(3,\); expected \(2,\)"),
    ({"seeds": torch.zeros(2, 1, dtype=torch.int64)}, "seeds has shape"),
    ({"seeds": torch.zeros(2, dtype=torch.int64, device="meta")}, "seeds is on meta; expected cpu"),
    ({"residual": torch.zeros(2, 39)}, "residual has shape"),
    ({"residual": torch.zeros(2, 40, dtype=torch.bfloat16)}, "residual has dtype"),
    ({"residual": torch.zeros(2, 40, device="meta")}, "residual is on meta"),
    ({"out": ()}, "out is a tuple; expected a tuple of codes, scales, residual, nonfinite"),
    ({"out": torch.zeros(4)}, "out is a Tensor; expected a tuple of codes"),
    ({"bits": 4.0}, "bits is 4.0; expected 1, 2, 4 or 8"),
    ({"bits": True}, "bits is True"),
    ({"norm": [1]}, r"norm is \[1\]; expected one of"),
    ({"out": OUT._replace(codes=torch.zeros(2, 31, dtype=torch.uint8))}, "out.codes has shape"),
    ({"out": OUT._replace(codes=torch.zeros(2, 32, dtype=torch.int8))}, "out.codes has dtype"),
    ({"out": OUT._replace(scales=torch.zeros(2, 2, dtype=torch.float64))}, "out.scales has dtype"),
    ({"out": OUT._replace(scales=torch.zeros(2, 2).t())}, "out.scales is not contiguous"),
    ({"out": OUT._replace(residual=torch.zeros(2, 40))}, "out.residual has shape"),
    ({"out": OUT._replace(nonfinite=torch.zeros(2, dtype=torch.uint8))}, "out.nonfinite has dtype"),
    ({"out": OUT._replace(nonfinite=torch.zeros(2, dtype=torch.bool, device="meta"))}, "out.nonfinite is on meta"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda v: v[:40] if isinstance(v, str) else None)
def test_quantize_names_the_bad_argument(change, message):
    arguments = {**GOOD, **change}
    with pytest.raises(ArgumentError, match=message):
        quantize(arguments.pop("update"), arguments.pop("seeds"), arguments.pop("residual", None), **arguments)


@backends
def test_an_output_may_not_overlap_an_input_or_another_output(backend):
    update, seeds, residual = rows(2, 40), torch.zeros(2, dtype=torch.int64), rows(2, 40)
    out, before = dirty(2, 40, 4, 32, True), residual.clone()
    with use_backend(backend):
        with pytest.raises(ArgumentError, match=r"out\.residual overlaps residual"):
            quantize(update, seeds, residual, bits=4, bucket=32, out=out._replace(residual=residual))
        with pytest.raises(ArgumentError, match=r"out\.residual overlaps update"):
            quantize(update, seeds, residual, bits=4, bucket=32, out=out._replace(residual=update))
        shared = torch.zeros(64, dtype=torch.uint8)
        clash = out._replace(codes=shared.view(2, 32), scales=shared[48:].view(torch.float32).view(2, 2))
        with pytest.raises(ArgumentError, match=r"out\.scales overlaps out\.codes"):
            quantize(update, seeds, residual, bits=4, bucket=32, out=clash)
        assert torch.equal(residual, before)
        with pytest.raises(ArgumentError, match="out overlaps scales"):
            dequantize(
                torch.zeros(1, 4, dtype=torch.uint8), out.scales[:1, :1], n=1, bits=4, bucket=8, out=out.scales[:1, :1]
            )


CODES, SCALES = torch.zeros(2, 32, dtype=torch.uint8), torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits is 5"),
        ({"bucket": 33}, "bucket is 33"),
        ({"n": -1}, "n is -1"),
        ({"n": 40.0}, "n is 40.0"),
        ({"n": 65}, r"scales has shape \(2, 2\); expected \(2, 3\)"),
        ({"n": 32}, "scales has shape"),
        ({"codes": torch.zeros(2, 31, dtype=torch.uint8)}, "codes has shape"),
        ({"codes": torch.zeros(3, 32, dtype=torch.uint8)}, "codes has shape"),
        ({"codes": torch.zeros(2, 32)}, "codes has dtype"),
        ({"codes": CODES.to("meta")}, "codes is on meta"),
        ({"scales": torch.zeros(2)}, "scales has shape"),
        ({"scales": torch.zeros(2, 2, dtype=torch.float16)}, "scales has dtype"),
        ({"out": torch.zeros(2, 41)}, "out has shape"),
        ({"out": torch.zeros(40, 2).t()}, "out is not contiguous"),
        ({"out": torch.zeros(2, 40, dtype=torch.float64)}, "out has dtype"),
    ],
)
def test_dequantize_names_the_bad_argument(change, message):
    arguments = {"codes": CODES, "scales": SCALES, "n": 40, "bits": 4, "bucket": 32, **change}
    with pytest.raises(ArgumentError, match=message):
        dequantize(arguments.pop("codes"), arguments.pop("scales"), **arguments)


def test_an_unusable_backend_says_so():
    with pytest.raises(BackendError, match="does not exist"), use_backend("gpu"):
        pass


# ---- out= ----


@backends
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("n", [0, 1, 100, 5000])
@pytest.mark.parametrize("bits", BITS)
def test_dirty_outputs_are_overwritten(backend, bits, n, with_residual):
    update, seeds = rows(3, n), torch.arange(3)
    if n:
        update[1, n // 2] = float("nan")
    residual = rows(3, n + 1)[:, 1:] if with_residual else None
    with use_backend(backend):
        fresh = quantize(update, seeds, residual, bits=bits, bucket=64)
        out = dirty(3, n, bits, 64, with_residual)
        returned = quantize(update, seeds, residual, bits=bits, bucket=64, out=out)
        assert all(one is other for one, other in zip(returned, out, strict=True))
        assert_same(out, fresh)
        target = torch.full((3, n), float("nan"))
        assert dequantize(out.codes, out.scales, n=n, bits=bits, bucket=64, out=target) is target
        assert torch.equal(target, dequantize(out.codes, out.scales, n=n, bits=bits, bucket=64))


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_need_not_be_contiguous(backend, dtype):
    wide, seeds = rows(6, 201, dtype), torch.arange(6)
    update, residual = wide[::2, ::2], rows(101, 3).t()
    with use_backend(backend):
        strided = quantize(update, seeds[::2], residual, bits=4, bucket=32)
        dense = quantize(update.contiguous(), seeds[::2].contiguous(), residual.contiguous(), bits=4, bucket=32)
        assert_same(strided, dense)
        codes = torch.stack([dense.codes, dense.codes], dim=2)[:, :, 0]
        assert torch.equal(
            dequantize(codes, dense.scales, n=101, bits=4, bucket=32),
            dequantize(dense.codes, dense.scales, n=101, bits=4, bucket=32),
        )


@backends
def test_no_rows_and_no_columns(backend):
    with use_backend(backend):
        for shape in ((0, 10), (3, 0), (0, 0)):
            result = quantize(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64), torch.zeros(shape), bits=2)
            assert result.residual.shape == shape
            assert result.nonfinite.tolist() == [False] * shape[0]
            assert dequantize(result.codes, result.scales, n=shape[1], bits=2).shape == shape


# ---- torch.library ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_opcheck(with_residual, dtype):
    update, seeds, residual = rows(2, 70, dtype), torch.arange(2), rows(2, 70) if with_residual else None
    arguments = (update, seeds, residual, 4, 32, "max", "stochastic")
    torch.library.opcheck(torch.ops.fedsynsam.quantize.default, arguments)
    out = dirty(2, 70, 4, 32, with_residual)
    torch.library.opcheck(torch.ops.fedsynsam.quantize_out.default, (*arguments, *out))
    result = quantize(update, seeds, bits=4, bucket=32)
    decode = (result.codes, result.scales, 70, 4, 32)
    torch.library.opcheck(torch.ops.fedsynsam.dequantize.default, decode)
    torch.library.opcheck(
        torch.ops.fedsynsam.dequantize_out.default, (result.codes, result.scales, 4, 32, torch.zeros(2, 70))
    )


def test_works_under_compile():
    def there_and_back(update, seeds, residual):
        result = quantize(update, seeds, residual, bits=4, bucket=32)
        return dequantize(result.codes, result.scales, n=update.shape[1], bits=4, bucket=32), result.residual

    compiled = torch.compile(there_and_back, backend="aot_eager", fullgraph=True)
    for n in (70, 90, 33):  # from the second size on the length is symbolic
        arguments = rows(2, n), torch.arange(2), rows(2, n)
        assert_same(compiled(*arguments), there_and_back(*arguments))


# ---- threads and memory paths ----


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_cpu
@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("bits", BITS)
def test_the_number_of_threads_changes_no_bit(threads, bits, norm):
    update, residual, seeds = rows(3, 80_001), rows(3, 80_001) * 0.1, torch.arange(3)
    update[1, 70_000] = float("inf")
    results = []
    for count in (1, 2, 3):
        threads(count)
        result = quantize(update, seeds, residual, bits=bits, norm=norm)
        results.append((*result, dequantize(result.codes, result.scales, n=80_001, bits=bits)))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@needs_cpu
def test_large_outputs_take_the_streaming_path_to_the_same_bits():
    n = 1_400_001  # odd: rows 1 and 2 start at addresses that no vector store is aligned to
    update, residual, seeds = rows(3, n), rows(3, n), torch.arange(3)
    result = quantize(update, seeds, residual, bits=4)
    values = dequantize(result.codes, result.scales, n=n, bits=4)
    for row in range(3):
        one = slice(row, row + 1)
        alone = quantize(update[one], seeds[one], residual[one], bits=4)
        assert_same([tensor[one] for tensor in result], alone)
        assert torch.equal(values[one], dequantize(alone.codes, alone.scales, n=n, bits=4))


# ---- bugs the field has shipped ----


@backends
def test_the_default_rounding_is_stochastic_and_seeded(backend):
    update = rows(1, 512).expand(3, 512)
    with use_backend(backend):
        result = quantize(update, torch.tensor([1, 2, 1]), bits=4)
    assert torch.equal(result.codes[0], result.codes[2])  # no clock, no state
    assert not torch.equal(result.codes[0], result.codes[1])  # and not shared between rows


@backends
@pytest.mark.parametrize("bits", BITS)
def test_codes_take_exactly_their_bits(backend, bits):
    with use_backend(backend):
        result = quantize(rows(1, 4096), torch.zeros(1, dtype=torch.int64), bits=bits)
    assert result.codes.numel() * 8 == 4096 * bits
    assert result.scales.numel() == 8


@backends
def test_the_scale_of_negative_values_is_their_magnitude(backend):
    with use_backend(backend):
        result = quantize(torch.full((1, 16), -3.0), torch.zeros(1, dtype=torch.int64), bits=4, bucket=16)
    assert result.scales.tolist() == [[3.0]]


@backends
@pytest.mark.parametrize("bits", BITS)
def test_a_single_column_does_not_grow(backend, bits):
    with use_backend(backend):
        result = quantize(torch.ones(5, 1), torch.zeros(5, dtype=torch.int64), bits=bits, bucket=8)
        values = dequantize(result.codes, result.scales, n=1, bits=bits, bucket=8)
    assert result.codes.shape == (5, bits)
    assert torch.equal(values, torch.ones(5, 1))


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_updates_are_summed_in_float32(backend, dtype):
    update, residual = torch.ones(1, 8, dtype=dtype), torch.full((1, 8), 2.0**-20)
    with use_backend(backend):
        result = quantize(update, torch.zeros(1, dtype=torch.int64), residual, bits=4, bucket=8)
    assert result.scales.item() == 1 + 2.0**-20
