"""sam_norm, sam_perturb and sam_step against a float64 oracle, the reference, and each other's forms.

Tolerances: an elementwise result is a handful of correctly rounded float32 operations, so it lies within
2^-24 · (a few) of the float64 oracle relative to the largest term; given the same norm, backends agree bit for bit.
A norm is summed in float64 and rounded once: within 2^-23 relative of the oracle and of the reference.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fedsynsam.errors import ArgumentError
from fedsynsam.ops import backend, sam_norm, sam_perturb, sam_step

SIZES = [0, 1, 15, 17, 1023, 1024, 1025, 16383, 16384, 16385, 49999]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(
    backend.why_not("cpu") is not None, reason="the C++ extension is not built"))]  # fmt: skip
ULP = 2.0**-23


@pytest.fixture(params=BACKENDS)
def use(request):
    with backend.use_backend(request.param):
        yield request.param


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def make(rows: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float) -> Tensor:
        return torch.randn(rows, n, generator=generator) * scale

    return {
        "weights": draw(1.0),
        "gradient": draw(0.1).to(dtype),
        "synthetic": draw(0.2).to(dtype),
        "correction": draw(0.3),
        "buffer": draw(0.1),
    }


def direction64(t: dict[str, Tensor], beta: float | None) -> Tensor:
    gradient = t["gradient"].double()
    return gradient if beta is None else beta * t["synthetic"].double() + (1 - beta) * gradient


def mixing(t: dict[str, Tensor], beta: float | None) -> dict:
    return {} if beta is None else {"synthetic": t["synthetic"], "beta": beta}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


def assert_bits(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(bits(actual), bits(expected))


# ---- values ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_norm_and_perturb_match_the_oracle(use, dtype, n):
    for adaptive, beta in itertools.product((False, True), (None, 0.7, 1.0)):
        check_norm_and_perturb(make(3, n, dtype), adaptive, beta)


def check_norm_and_perturb(t: dict[str, Tensor], adaptive: bool, beta: float | None) -> None:
    d = direction64(t, beta)
    w = t["weights"].double()
    norm64 = (w * d if adaptive else d).norm(dim=1)
    norm = sam_norm(t["weights"], t["gradient"], adaptive=adaptive, **mixing(t, beta))
    assert norm.dtype == torch.float32
    # d itself is rounded three times when mixed and once more when multiplied by w
    torch.testing.assert_close(norm.double(), norm64, rtol=4 * ULP, atol=0)

    rho = 0.5
    moved = w * w * d if adaptive else d
    expected = w + rho * torch.nan_to_num(moved / norm64[:, None])
    actual = sam_perturb(t["weights"], t["gradient"], rho=rho, adaptive=adaptive, **mixing(t, beta))
    torch.testing.assert_close(actual.double(), expected, rtol=8 * ULP, atol=2 * ULP)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_step_matches_the_oracle(use, dtype, n):
    for weight_decay, corrected, momentum in itertools.product((0.0, 0.01), (False, True), (0.0, 0.9)):
        check_step(make(2, n, dtype), weight_decay, corrected, momentum)


def check_step(t: dict[str, Tensor], weight_decay: float, corrected: bool, momentum: float) -> None:
    w, buffer = t["weights"].double(), t["buffer"].double()
    u = t["gradient"].double() + weight_decay * w + (t["correction"].double() if corrected else 0)
    if momentum:
        u = buffer = momentum * buffer + u
    returned = sam_step(
        t["weights"],
        t["gradient"],
        lr=0.25,
        weight_decay=weight_decay,
        momentum=momentum,
        momentum_buffer=t["buffer"] if momentum else None,
        correction=t["correction"] if corrected else None,
    )
    assert returned is None
    torch.testing.assert_close(t["weights"].double(), w - 0.25 * u, rtol=4 * ULP, atol=4 * ULP)
    torch.testing.assert_close(t["buffer"].double(), buffer, rtol=4 * ULP, atol=4 * ULP)


@pytest.mark.skipif(backend.why_not("cpu") is not None, reason="the C++ extension is not built")
@pytest.mark.parametrize(
    ("rows", "n", "dtype"),
    [
        *itertools.product([1], [1, 300_007], DTYPES),
        *itertools.product([3], [1025, 16385], DTYPES),
        *itertools.product([40], [5003], DTYPES),
        (2, 2_200_003, torch.float32),
    ],
    ids=str,
)
def test_cpu_equals_reference_bit_for_bit(two_threads, rows, n, dtype):
    """Covers rows in one thread, rows shared among threads, long rows, and outputs that bypass the caches."""
    t = make(rows, n, dtype)
    for adaptive in (False, True):
        for beta in (None, 0.3):
            options = {"adaptive": adaptive, **mixing(t, beta)}
            with backend.use_backend("cpu"):
                norm = sam_norm(t["weights"], t["gradient"], **options)
                fused = sam_perturb(t["weights"], t["gradient"], rho=0.05, **options)
                given = sam_perturb(t["weights"], t["gradient"], rho=0.05, norm=norm, **options)
            with backend.use_backend("reference"):
                expected_norm = sam_norm(t["weights"], t["gradient"], **options)
                expected = sam_perturb(t["weights"], t["gradient"], rho=0.05, norm=norm, **options)
            torch.testing.assert_close(norm, expected_norm, rtol=ULP, atol=0)
            assert_bits(fused, expected)
            assert_bits(given, expected)
    options = {"lr": 0.1, "weight_decay": 1e-2, "momentum": 0.9, "correction": t["correction"]}
    results = {}
    for name in ("cpu", "reference"):
        weights, buffer = t["weights"].clone(), t["buffer"].clone()
        with backend.use_backend(name):
            sam_step(weights, t["gradient"], momentum_buffer=buffer, **options)
        results[name] = (weights, buffer)
    for actual, expected in zip(results["cpu"], results["reference"], strict=True):
        assert_bits(actual, expected)


@pytest.mark.parametrize(("rows", "n"), [(1, 300_007), (40, 5003)])
def test_results_do_not_depend_on_the_thread_count(two_threads, rows, n):
    t = make(rows, n)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        weights = t["weights"].clone()
        perturbed = sam_perturb(weights, t["gradient"], rho=0.05)
        sam_step(weights, t["gradient"], lr=0.1)
        results.append((sam_norm(weights, t["gradient"]), perturbed, weights))
    for one, two in zip(*results, strict=True):
        assert_bits(one, two)


def test_every_float16_value_converts_exactly(use):
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)[None]
    weights = torch.zeros(1, 65536)
    sam_step(weights, halves, lr=-1.0)
    torch.testing.assert_close(weights, halves.float(), rtol=0, atol=0, equal_nan=True)


# ---- special rows ----


def test_zero_norm_returns_the_weights_bit_for_bit(use):
    weights = torch.tensor([[1.0, -0.0, 3.0], [1.0, 2.0, 3.0]])
    gradient = torch.tensor([[0.0, 0.0, -0.0], [0.0, 0.0, 4.0]])
    perturbed = sam_perturb(weights, gradient, rho=0.5)
    assert_bits(perturbed, torch.tensor([[1.0, -0.0, 3.0], [1.0, 2.0, 3.5]]))
    # adaptive: the gradient is not zero, but |w|·g is
    zeros = torch.tensor([[0.0, -0.0]])
    assert_bits(sam_perturb(zeros, torch.ones(1, 2), rho=0.5, adaptive=True), zeros)


def test_denormal_gradient_gives_finite_weights(use):
    gradient = torch.full((1, 4), 1e-42)
    perturbed = sam_perturb(torch.ones(1, 4), gradient, rho=100.0)
    assert torch.isfinite(perturbed).all()
    assert sam_norm(torch.ones(1, 4), gradient).item() > 0  # no underflow in the squares either


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_gradient_shows_in_norm_and_row(use, bad):
    t = make(3, 40)
    t["gradient"][1, 7] = bad
    norm = sam_norm(t["weights"], t["gradient"])
    assert torch.isfinite(norm).tolist() == [True, False, True]
    perturbed = sam_perturb(t["weights"], t["gradient"], rho=0.05)
    assert perturbed[1].isnan().all()
    assert torch.isfinite(perturbed[[0, 2]]).all()


def test_negative_rho_steps_the_other_way(use):
    weights, gradient = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    assert sam_perturb(weights, gradient, rho=-5.0).tolist() == [[-3.0, -4.0]]


def test_given_norm_is_used(use):
    weights, gradient = torch.ones(2, 2), torch.full((2, 2), 3.0)
    perturbed = sam_perturb(weights, gradient, rho=1.0, norm=torch.tensor([6.0, 12.0]))
    assert perturbed.tolist() == [[1.5, 1.5], [1.25, 1.25]]


def test_no_rows(use):
    weights = torch.empty(0, 5)
    assert sam_norm(weights, weights).shape == (0,)
    assert sam_perturb(weights, weights.clone(), rho=1.0).shape == (0, 5)
    sam_step(weights, weights.clone(), lr=1.0)


# ---- forms ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous_inputs(use, dtype):
    t = {name: tensor.t() for name, tensor in make(33, 20, dtype).items()}
    assert not t["weights"].is_contiguous()
    dense = {name: tensor.contiguous() for name, tensor in t.items()}
    for adaptive in (False, True):
        options = {"rho": 0.1, "beta": 0.5, "adaptive": adaptive}
        actual = sam_perturb(t["weights"], t["gradient"], synthetic=t["synthetic"], **options)
        assert_bits(actual, sam_perturb(dense["weights"], dense["gradient"], synthetic=dense["synthetic"], **options))
    stepped = dense["weights"].clone()
    sam_step(stepped, t["gradient"], lr=0.1, correction=t["correction"])
    sam_step(dense["weights"], dense["gradient"], lr=0.1, correction=dense["correction"])
    assert_bits(stepped, dense["weights"])


def test_unaligned_rows(use):
    storage = make(1, 2 * 5003 + 1)
    weights, gradient = (storage[name][:, 1:].view(2, 5003) for name in ("weights", "gradient"))
    aligned = sam_perturb(weights.clone(), gradient.clone(), rho=0.1)
    out = torch.empty(2 * 5003 + 1)[1:].view(2, 5003)
    assert_bits(sam_perturb(weights, gradient, rho=0.1, out=out), aligned)


def test_out_is_filled_and_returned(use):
    t = make(3, 1025)
    norm, out = torch.full((3,), math.nan), torch.full((3, 1025), math.nan)
    assert sam_norm(t["weights"], t["gradient"], out=norm) is norm
    assert_bits(norm, sam_norm(t["weights"], t["gradient"]))
    before = t["weights"].clone()
    assert sam_perturb(t["weights"], t["gradient"], rho=0.1, out=out) is out
    assert_bits(out, sam_perturb(t["weights"], t["gradient"], rho=0.1))
    assert_bits(t["weights"], before)


def test_opcheck():
    t = make(3, 100, torch.bfloat16)
    w, g, s = t["weights"], t["gradient"], t["synthetic"]
    ops = torch.ops.fedsynsam
    norm = sam_norm(w, g)
    for synthetic, given, beta in ((None, None, 1.0), (s, norm, 0.5)):
        torch.library.opcheck(ops.sam_norm.default, (w, g, synthetic, beta, True))
        torch.library.opcheck(ops.sam_norm_out.default, (w, g, synthetic, beta, False, torch.empty(3)))
        torch.library.opcheck(ops.sam_perturb.default, (w, g, synthetic, given, 0.1, beta, False))
        arguments = (w, g, synthetic, given, 0.1, beta, True, torch.empty_like(w))
        torch.library.opcheck(ops.sam_perturb_out.default, arguments)
    torch.library.opcheck(ops.sam_step.default, (w.clone(), g, None, None, 0.1, 0.0, 0.0))
    torch.library.opcheck(ops.sam_step.default, (w.clone(), g, t["correction"], t["buffer"].clone(), 0.1, 0.1, 0.9))


def test_traces_without_graph_breaks():
    """The wrappers' checks must be traceable; `aot_eager` needs no compiler on the machine."""
    t = make(2, 50)

    def program(weights: Tensor, gradient: Tensor) -> Tensor:
        perturbed = sam_perturb(weights, gradient, rho=0.1)
        sam_step(weights, perturbed * 2, lr=0.1)
        return perturbed + weights

    eager, compiled = t["weights"].clone(), t["weights"].clone()
    expected = program(eager, t["gradient"])
    actual = torch.compile(program, backend="aot_eager", fullgraph=True)(compiled, t["gradient"])
    assert_bits(actual, expected)
    assert_bits(compiled, eager)


# ---- refusals ----

W = torch.zeros(2, 6)
G = torch.ones(2, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sam_norm([1.0], G), "weights is a list"),
        (lambda: sam_norm(W[0], G[0]), r"weights has shape \(6,\); expected two dimensions"),
        (lambda: sam_norm(W.double(), G), "weights has dtype torch.float64"),
        (lambda: sam_norm(W, G[:, :5]), r"gradient has shape \(2, 5\); expected \(2, 6\)"),
        (lambda: sam_norm(W, G.double()), "gradient has dtype torch.float64; expected torch.float32, torch.bfloat16"),
        (lambda: sam_norm(W, None), "gradient is a NoneType"),
        (lambda: sam_norm(W, G.to("meta")), "gradient is on meta; expected cpu"),
        (lambda: sam_norm(W, G, synthetic=G[:1], beta=0.5), r"synthetic has shape \(1, 6\)"),
        (lambda: sam_norm(W, G, synthetic=G.half(), beta=0.5), "synthetic has dtype torch.float16; expected"),
        (lambda: sam_norm(W, G, beta=0.5), "beta is 0.5 but synthetic was not given"),
        (lambda: sam_norm(W, G, synthetic=G, beta=math.nan), "beta is nan"),
        (lambda: sam_norm(W, G, out=torch.empty(3)), r"out is torch.float32 \(3,\); expected float32 \(2,\)"),
        (lambda: sam_norm(W, G, out=torch.empty(4)[::2]), "out is not contiguous"),
        (lambda: sam_norm(W, G, out=G.view(-1)[:2]), "out overlaps gradient"),
        (lambda: sam_perturb(W, G, rho=math.inf), "rho is inf"),
        (lambda: sam_perturb(W, G, rho=0.1, norm=torch.ones(2, 1)), r"norm is torch.float32 \(2, 1\)"),
        (lambda: sam_perturb(W, G, rho=0.1, norm=2.0), "norm is float; expected float32"),
        (lambda: sam_perturb(W, G, rho=0.1, out=torch.empty(2, 5)), r"out has shape \(2, 5\)"),
        (lambda: sam_perturb(W, G, rho=0.1, out=W.half()), "out has dtype torch.float16; expected torch.float32"),
        (lambda: sam_perturb(W, G, rho=0.1, out=torch.empty(6, 2).t()), "out is not contiguous"),
        (lambda: sam_perturb(W, G, rho=0.1, out=W), "out overlaps weights"),
        (lambda: sam_perturb(W, G, rho=0.1, out=G), "out overlaps gradient"),
        (lambda: sam_perturb(W, G, rho=0.1, synthetic=(s := G.clone()), beta=0.5, out=s), "out overlaps synthetic"),
        (lambda: sam_step(torch.zeros(6, 2).t(), G, lr=0.1), "weights is not contiguous"),
        (lambda: sam_step(W, G, lr=math.nan), "lr is nan"),
        (lambda: sam_step(W, G, lr=None), "lr is None; expected a finite number"),
        (lambda: sam_perturb(W, G, rho="0.1"), "rho is '0.1'; expected a finite number"),
        (lambda: sam_norm(W, G, synthetic=G, beta=None), "beta is None"),
        (lambda: sam_step(W, G, lr=0.1, weight_decay=math.inf), "weight_decay is inf"),
        (lambda: sam_step(W, G, lr=0.1, momentum=math.nan), "momentum is nan"),
        (lambda: sam_step(W, G, lr=0.1, momentum=0.9), "momentum is 0.9 but momentum_buffer was not given"),
        (lambda: sam_step(W, G, lr=0.1, momentum_buffer=G.clone()), "momentum is 0.0 but momentum_buffer was given"),
        (lambda: sam_step(W, G, lr=0.1, momentum=0.9, momentum_buffer=G.half()), "momentum_buffer has dtype"),
        (lambda: sam_step(W, G, lr=0.1, momentum=0.9, momentum_buffer=torch.zeros(6, 2).t()), "momentum_buffer is not"),
        (lambda: sam_step(W, G, lr=0.1, correction=G.half()), "correction has dtype torch.float16"),
        (lambda: sam_step(W, W, lr=0.1), "weights overlaps gradient"),
        (lambda: sam_step(W, G, lr=0.1, momentum=0.9, momentum_buffer=W), "momentum_buffer overlaps weights"),
        (lambda: sam_step(W, G, lr=0.1, momentum=0.9, momentum_buffer=G), "momentum_buffer overlaps gradient"),
    ],
)
def test_bad_arguments(call, message):
    before = W.clone(), G.clone()
    with pytest.raises(ArgumentError, match=message):
        call()
    assert torch.equal(W, before[0])
    assert torch.equal(G, before[1])


def test_autograd_learns_of_what_is_written():
    w = torch.ones(1, 8, requires_grad=True)
    y = (w * w).sum()
    with torch.no_grad():
        sam_step(w, torch.ones(1, 8), lr=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    out = torch.empty(1, 8)
    sam_perturb(torch.ones(1, 8), torch.ones(1, 8), rho=0.1, out=out)
    assert out._version == 1
    with torch.inference_mode():
        sam_step(torch.ones(1, 8), torch.ones(1, 8), lr=1.0)
