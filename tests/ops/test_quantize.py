"""quantize and dequantize: the reference against an independent oracle, every backend against the reference.

The oracle below walks over single values in numpy float32 and Python integers, straight from the formulas; nothing
of the package is used in it. Codes, scales, residuals and values must agree in every bit.
"""

import numpy as np
import pytest
import torch

from fedsynsam.ops import Quantized, dequantize, quantize
from fedsynsam.ops.backend import use_backend, why_not
from fedsynsam.ops.quantize import reference

BITS = (1, 2, 4, 8)
NORMS = ("max", "l2")
ROUNDINGS = ("stochastic", "nearest")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLT_MAX = float(np.finfo(np.float32).max)

needs_cpu = pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])


# ---- the oracle ----


def philox_oracle(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def draw_oracle(seed, position, bucket):
    index, inside = divmod(position, bucket)
    half, j = divmod(inside, bucket // 8)
    counter, seed = index * (bucket // 8) + j, seed % 2**64
    words = philox_oracle((counter % 2**32, counter >> 32, 0, 0), (seed % 2**32, seed >> 32))
    return words[half // 2] >> (16 * (half % 2)) & 0xFFFF


def scale_oracle(values, norm):
    """Scale of one padded bucket of np.float32."""
    if norm == "max":
        scale = max(abs(v) for v in values)
    else:
        squares = [np.float64(v) ** 2 for v in values]
        while len(squares) > 1:
            half = len(squares) // 2
            squares = [squares[i] + squares[i + half] for i in range(half)]
        scale = np.float32(min(np.sqrt(squares[0]), np.float64(FLT_MAX)))
    return np.float32(0) if scale < 2.0**-120 else np.float32(scale)


def level_oracle(a, scale, bits, draw):
    """(code, x) of one value; draw None means nearest."""
    if scale == 0:
        return 0, np.float32(0)
    top = max(1, 2 ** (bits - 1) - 1)
    y = a * (np.float32(top) / scale)
    if bits == 1:
        p = (y + np.float32(1)) * np.float32(0.5)
        minus = a < 0 if draw is None else not draw < int(np.floor(p * np.float32(65536)))
        return int(minus), -scale if minus else scale
    if draw is None:
        q = int(np.round(y))
    else:
        floor = np.floor(y)
        q = int(floor) + (draw < int(np.floor((y - floor) * np.float32(65536))))
    q = max(-top, min(top, q))
    step = scale / np.float32(top)
    if bits == 8:
        step = min(step, np.float32(8454659 * 2.0**98))  # 127 steps stay finite
    return q % 2**bits, np.float32(q) * step


def quantize_oracle(a, seed, bits, bucket, norm, rounding):
    """(codes, scales, residual, values) of one finite row a of np.float32."""
    count = -(-len(a) // bucket)
    padded = np.zeros(count * bucket, np.float32)
    padded[: len(a)] = a
    scales = [scale_oracle(padded[b * bucket : (b + 1) * bucket], norm) for b in range(count)]
    codes, values, stride = (
        np.zeros(count * bucket * bits // 8, np.uint8),
        np.zeros(len(a), np.float32),
        bucket * bits // 8,
    )
    for i in range(len(a)):
        draw = draw_oracle(seed, i, bucket) if rounding == "stochastic" else None
        code, values[i] = level_oracle(padded[i], scales[i // bucket], bits, draw)
        slot, byte = divmod(i % bucket, stride)
        codes[i // bucket * stride + byte] |= code << (slot * bits)
    with np.errstate(over="ignore"):
        residual = np.clip(a - values, -np.float32(FLT_MAX), np.float32(FLT_MAX))
    return codes, np.array(scales, np.float32), residual, values


# ---- data ----


def special_rows(n, dtype=torch.float32):
    """Rows [10, n] of everything that has gone wrong somewhere: zeros of both signs, ties, denormals, extremes."""
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(10, n, generator=generator)
    position = torch.arange(n)
    rows = noise.clone()
    rows[1] = 0.0
    rows[2] = torch.where(position % 2 == 0, 0.0, -0.0)
    rows[3] = -0.75  # all equal, all negative
    rows[4] = (position % 29 - 14) / 2  # exact ties of nearest rounding
    rows[5] = noise[5] * 2.0**-130  # denormals and a zero bucket
    rows[6] = noise[6].sign() * 2.0**-119 * (1 + position % 7 / 4)  # around the smallest scale
    rows[7] = (noise[7].clamp(-1, 1) * FLT_MAX).clamp(-FLT_MAX, FLT_MAX)
    rows[8] = noise[8].sign() * FLT_MAX
    rows[9] = torch.where(position % 97 == 5, noise[9], noise[9] * 2.0**-20)  # few large values
    largest = torch.finfo(dtype).max
    return rows.clamp(-largest, largest).to(dtype)


def seeds_of(rows):
    return torch.tensor([0, -1, 1, 2**63 - 1, -(2**63), 2**32, 12345678901234567, -7, 2**31, 42])[:rows]


def same_bits(left, right):
    def view(t):
        return t.contiguous().view(torch.uint8) if t.dtype != torch.bool else t

    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert torch.equal(view(left), view(right))


def run(backend, *arguments, **options):
    with use_backend(backend):
        return quantize(*arguments, **options)


def decode(backend, result, n, bits, bucket):
    with use_backend(backend):
        return dequantize(result.codes, result.scales, n=n, bits=bits, bucket=bucket)


def levels_of(codes, bits):
    """Every signed code of packed bytes, in no particular order."""
    slots = [(codes.int() >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    levels = torch.stack(slots)
    return torch.where(levels >= 2 ** (bits - 1), levels - 2**bits, levels)


# ---- the reference against the published and the independent ----

KNOWN_ANSWERS = [  # Random123, kat_vectors: counter, key, words of philox4x32 with 10 rounds
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words):
    as_tensors = reference.philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in as_tensors) == words
    assert tuple(philox_oracle(counter, key)) == words


def test_draws_sit_where_the_layout_says():
    draws = reference.uniform16(seeds_of(3), 3, 16)
    expected = [[draw_oracle(int(s), i, 16) for i in range(48)] for s in seeds_of(3)]
    assert draws.flatten(1).tolist() == expected


@backends
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bits", BITS)
def test_equals_the_oracle(backend, bits, norm, rounding):
    n, bucket = 77, 32
    update, residual = special_rows(n), special_rows(n).flip(1) * 0.25
    seeds = seeds_of(10)
    result = run(backend, update, seeds, residual, bits=bits, bucket=bucket, norm=norm, rounding=rounding)
    values = decode(backend, result, n, bits, bucket)
    for row in range(10):
        a = (update[row] + residual[row]).numpy()
        if not np.isfinite(a).all():
            assert result.nonfinite[row]
            continue
        oracle = quantize_oracle(a, int(seeds[row]), bits, bucket, norm, rounding)
        got = result.codes[row], result.scales[row], result.residual[row], values[row]
        for name, expected, tensor in zip(("codes", "scales", "residual", "values"), oracle, got, strict=True):
            np.testing.assert_array_equal(
                expected.view(np.uint8), tensor.numpy().view(np.uint8), f"{name} of row {row}"
            )


# ---- every backend against the reference ----


@needs_cpu
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bits", BITS)
def test_cpu_equals_the_reference(bits, norm, rounding, dtype, with_residual):
    sizes = [(n, 512) for n in (0, 1, 511, 512, 513, 1031)] + [(97, 8), (127, 16), (200, 64)]
    for n, bucket in sizes + [(4099, 4096), (65537, 65536)] * (dtype == torch.float32):
        rows = 10 if n < 4000 else 2
        update = special_rows(n, dtype)[:rows]
        residual = torch.randn(rows, n, generator=torch.Generator().manual_seed(1)) if with_residual else None
        options = {"bits": bits, "bucket": bucket, "norm": norm, "rounding": rounding}
        expected = run("reference", update, seeds_of(rows), residual, **options)
        got = run("cpu", update, seeds_of(rows), residual, **options)
        for left, right in zip(expected, got, strict=True):
            same_bits(left, right)
        same_bits(decode("reference", got, n, bits, bucket), decode("cpu", got, n, bits, bucket))


@needs_cpu
def test_cpu_converts_every_half_precision_value():
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15).short().view(dtype)
        every = every[every.isfinite()].view(1, -1)
        options = {"bits": 8, "bucket": 8, "rounding": "nearest"}
        zero = torch.zeros(1, every.shape[1])
        expected = run("reference", every, torch.zeros(1, dtype=torch.int64), zero, **options)
        got = run("cpu", every, torch.zeros(1, dtype=torch.int64), zero, **options)
        for left, right in zip(expected, got, strict=True):
            same_bits(left, right)


@needs_cpu
@pytest.mark.parametrize("bits", BITS)
def test_dequantize_cpu_reads_every_byte_like_the_reference(bits):
    codes = torch.arange(256, dtype=torch.uint8).repeat(8 * bits).view(2, -1)  # illegal patterns too: never a crash
    n = codes.shape[1] * 8 // bits
    scales = torch.linspace(0.1, FLT_MAX / 4, 2 * n // 64).view(2, -1)
    result = Quantized(codes, scales, torch.empty(2, 0), torch.zeros(2, dtype=torch.bool))
    same_bits(decode("reference", result, n, bits, 64), decode("cpu", result, n, bits, 64))


# ---- what must hold for any input ----


@backends
@pytest.mark.parametrize("n", [1, 5, 63, 65, 130])
@pytest.mark.parametrize("bits", BITS)
def test_padding_codes_are_zero(backend, bits, n):
    bucket, ones = 64, torch.ones(3, n)
    result = run(backend, -ones, seeds_of(3), bits=bits, bucket=bucket)
    buckets = -(-n // bucket)
    codes = reference.unpack(result.codes, bits, bucket).reshape(3, buckets * bucket)
    assert (codes[:, n:] == 0).all()
    assert (codes[:, :n] != 0).all()


@backends
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_illegal_pattern_never_occurs(backend, bits, norm, rounding):
    rows = torch.cat([special_rows(700), torch.eye(10, 700) * FLT_MAX, torch.randn(10, 700).sign() * 1e-36])
    seeds = torch.arange(30)
    for bucket in (8, 128):
        result = run(backend, rows, seeds, bits=bits, bucket=bucket, norm=norm, rounding=rounding)
        assert (levels_of(result.codes, bits) > -(2 ** (bits - 1))).all()


@backends
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bits", BITS)
def test_extremes_stay_finite(backend, bits, norm):
    rows = special_rows(600)
    result = run(backend, rows, seeds_of(10), torch.zeros(10, 600), bits=bits, norm=norm)
    assert not result.nonfinite.any()
    assert result.scales.isfinite().all()
    assert result.residual.isfinite().all()
    assert decode(backend, result, 600, bits, 512).isfinite().all()


@backends
@pytest.mark.parametrize("bits", BITS)
def test_a_zero_bucket_has_zero_codes_and_no_nan(backend, bits):
    for tiny in (0.0, -0.0, 2.0**-149, -(2.0**-121)):
        row = torch.full((1, 20), tiny)
        result = run(backend, row, seeds_of(1), torch.zeros(1, 20), bits=bits, bucket=16)
        assert not result.codes.any()
        assert not result.scales.any()
        same_bits(decode(backend, result, 20, bits, 16), torch.zeros(1, 20))
        assert torch.equal(result.residual, row)


@backends
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", BITS)
def test_a_bad_row_is_flagged_and_the_others_are_right(backend, bits, bad):
    update, residual, seeds = torch.randn(64, 100), torch.randn(64, 100), torch.arange(64)
    clean = run(backend, update, seeds, residual, bits=bits, bucket=32)
    update[17, 99] = bad
    before = residual.clone()
    result = run(backend, update, seeds, residual, bits=bits, bucket=32)
    assert result.nonfinite.tolist() == [row == 17 for row in range(64)]
    assert not result.codes[17].any()
    assert not result.scales[17].any()
    same_bits(result.residual[17], before[17])
    same_bits(residual, before)
    others = torch.arange(64) != 17
    for left, right in zip(clean, result, strict=True):
        same_bits(left[others], right[others])


@backends
def test_an_overflowing_sum_is_flagged(backend):
    update = torch.tensor([[FLT_MAX, 1.0], [1.0, 1.0]])
    result = run(backend, update, seeds_of(2), update.clone(), bits=4, bucket=8)
    assert result.nonfinite.tolist() == [True, False]
    same_bits(result.residual[0], update[0])
