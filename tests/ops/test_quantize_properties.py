"""quantize as a random variable and as a map: unbiased, independent draws, nothing lost, repeatable."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsynsam.ops import dequantize, quantize
from fedsynsam.ops.backend import use_backend, why_not

BITS = (1, 2, 4, 8)
NORMS = ("max", "l2")
ROUNDINGS = ("stochastic", "nearest")
FLT_MAX = float(np.finfo(np.float32).max)

needs_cpu = pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])


def same_bits(left, right):
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(left.numpy().view(np.uint8), right.numpy().view(np.uint8))


def run(backend, *arguments, **options):
    with use_backend(backend):
        return quantize(*arguments, **options)


def decode(backend, result, n, bits, bucket):
    with use_backend(backend):
        return dequantize(result.codes, result.scales, n=n, bits=bits, bucket=bucket)


# ---- statistics ----


def bias_in_steps(backend, bits, norm, rounding, draws=4096):
    """(E[x] - a in steps, its standard deviation in steps) over `draws` rows of the same 64 values."""
    a = torch.randn(64, generator=torch.Generator().manual_seed(3))
    result = run(backend, a.expand(draws, 64), torch.arange(draws), bits=bits, bucket=64, norm=norm, rounding=rounding)
    values = decode(backend, result, 64, bits, 64).double()
    scale = result.scales[0, 0].double()
    step = 2 * scale if bits == 1 else scale / (2 ** (bits - 1) - 1)
    fraction = ((a.double() + scale) / step) % 1 if bits == 1 else (a.double() / step) % 1
    return (values.mean(dim=0) - a.double()) / step, (fraction * (1 - fraction) / draws).sqrt()


@backends
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bits", BITS)
def test_stochastic_rounding_is_unbiased(backend, bits, norm):
    # A value is up with probability f, so the mean of N draws has variance f(1-f)/N steps². 16-bit draws are off by
    # at most 2^-16, float32 by less than 2^-16 steps more. Six deviations: one chance in 10^7 over all 64 values.
    bias, deviation = bias_in_steps(backend, bits, norm, "stochastic")
    assert (bias.abs() <= 6 * deviation + 2 * 2.0**-16).all()
    scores = bias[deviation > 1e-3] / deviation[deviation > 1e-3]  # and as spread as they should be, not less
    assert 0.5 < scores.square().mean() < 1.6


def test_the_bias_test_can_fail():
    bias, deviation = bias_in_steps("reference", 4, "max", "nearest")
    assert (bias.abs() > 6 * deviation + 2 * 2.0**-16).any()


@backends
def test_draws_are_independent_of_position_row_and_neighbour(backend):
    row = torch.full((1, 4096), 0.3)
    row[0, ::512] = 1.0  # scale 1 in every bucket
    values = decode(backend, run(backend, row.expand(2, -1), torch.tensor([5, 6]), bits=2), 4096, 2, 512)
    up = values.view(2, 8, 512)[:, :, 1:].double()
    assert not torch.equal(up[0], up[1])  # rows with other seeds
    buckets = up.reshape(16, 511)
    correlation = torch.corrcoef(buckets) - torch.eye(16)
    assert correlation.abs().max() < 6 / 511**0.5  # no two buckets share draws
    neighbours = torch.corrcoef(torch.stack([up[..., :-1].flatten(), up[..., 1:].flatten()]))[0, 1]
    assert neighbours.abs() < 6 / up.numel() ** 0.5


# ---- properties ----

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
small = st.floats(width=32, min_value=-(2.0**20), max_value=2.0**20)


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.one_of(st.tuples(small, small), st.tuples(finite, st.just(0.0))), min_size=1, max_size=70),
    seed=st.integers(-(2**63), 2**63 - 1),
    bits=st.sampled_from(BITS),
    norm=st.sampled_from(NORMS),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_what_is_lost_stays_in_the_residual(pairs, seed, bits, norm, rounding):
    update, residual = (torch.tensor(column).view(1, -1) for column in zip(*pairs, strict=True))
    n, a = len(pairs), update + residual
    result = quantize(update, torch.tensor([seed]), residual, bits=bits, bucket=32, norm=norm, rounding=rounding)
    values = dequantize(result.codes, result.scales, n=n, bits=bits, bucket=32)
    assert not result.nonfinite.any()
    same_bits(result.residual, (a - values).clamp(-FLT_MAX, FLT_MAX))  # one rounding, nothing else
    # y and x carry a few roundings of at most 127 steps: 127 * 2^-20 < 2^-13 of a step.
    step = result.scales.double().repeat_interleave(32, dim=1)[:, :n] / max(1, 2 ** (bits - 1) - 1)
    reach = {(1, "nearest"): 1.0, (1, "stochastic"): 2.0}.get((bits, rounding), 0.5 if rounding == "nearest" else 1.0)
    error = (a.double() - values.double()).abs()
    assert (error <= torch.where(step > 0, reach * step * (1 + 2.0**-13), 2.0**-120)).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(finite, max_size=40), st.integers(-(2**63), 2**63 - 1), st.sampled_from(BITS))
def test_repeats_are_equal_and_leave_the_global_generator_alone(values, seed, bits):
    update, state = torch.tensor(values).view(1, -1), torch.get_rng_state()
    first = quantize(update, torch.tensor([seed]), bits=bits, bucket=16)
    second = quantize(update, torch.tensor([seed]), bits=bits, bucket=16)
    for left, right in zip(first, second, strict=True):
        same_bits(left, right)
    assert torch.equal(torch.get_rng_state(), state)
