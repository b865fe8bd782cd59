"""The SAM optimizer against hand arithmetic, against plain eager SAM, and in the company it keeps."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import fedsynsam as fs
from fedsynsam.errors import ArgumentError, NonFiniteError, StateError

# One rounding more or less per operation than eager (which may fuse the multiply-add): a few float32 ulps a step.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def make_problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    return model, torch.randn(20, 6), torch.randint(0, 3, (20,))


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def two_steps(optimizer: fs.SAM, model: nn.Module, x: Tensor, y: Tensor) -> None:
    backward(model, x, y)
    optimizer.first_step(zero_grad=True)
    backward(model, x, y)
    optimizer.second_step(zero_grad=True)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


def eager_sam_step(model, base, x, y, rho: float, adaptive: bool) -> None:
    """SAM as its paper writes it, in plain PyTorch and float32."""
    base.zero_grad()
    backward(model, x, y)
    originals = weights_of(model)
    with torch.no_grad():
        parts = [(p.abs() if adaptive else 1.0) * p.grad for p in model.parameters()]
        norm = torch.sqrt(sum(part.double().square().sum() for part in parts)).float()
        for p in model.parameters():
            p.add_(rho / norm * (p.square() if adaptive else 1.0) * p.grad)
    base.zero_grad()
    backward(model, x, y)
    with torch.no_grad():
        for p, original in zip(model.parameters(), originals, strict=True):
            p.copy_(original)
    base.step()
    base.zero_grad()


def test_first_step_matches_hand_arithmetic():
    w, v = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    optimizer = fs.SAM([w, v], torch.optim.SGD, lr=0.5, rho=0.13)
    w.grad, v.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])  # the global norm is 13
    optimizer.first_step()
    torch.testing.assert_close(w.detach(), torch.tensor([1.03, 2.04]))
    torch.testing.assert_close(v.detach(), torch.tensor([5.12]))
    w.grad, v.grad = torch.tensor([2.0, 0.0]), torch.tensor([1.0])
    optimizer.second_step()
    assert w.tolist() == [0.0, 2.0]  # exactly from w, not from w' minus the perturbation
    assert v.tolist() == [4.5]


def test_adaptive_first_step_matches_hand_arithmetic():
    w = torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = fs.SAM([w], torch.optim.SGD, lr=0.5, rho=0.5, adaptive=True)
    w.grad = torch.tensor([1.0, 2.0])  # |w| g = (3, 4), norm 5; w^2 g = (9, 8)
    optimizer.first_step()
    torch.testing.assert_close(w.detach(), torch.tensor([3.9, -1.2]))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("base", "options"),
    [(torch.optim.SGD, {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-3}), (torch.optim.AdamW, {"lr": 1e-2})],
)
def test_follows_plain_eager_sam(base, options, adaptive):
    model, x, y = make_problem()
    twin = copy.deepcopy(model)
    optimizer = fs.SAM(model.parameters(), base, rho=0.1, adaptive=adaptive, **options)
    plain = base(twin.parameters(), **options)
    for _ in range(8):
        two_steps(optimizer, model, x, y)
        eager_sam_step(twin, plain, x, y, rho=0.1, adaptive=adaptive)
    for ours, theirs in zip(weights_of(model), weights_of(twin), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("gradient_first", [False, True])
def test_closure_equals_two_steps(gradient_first):
    model, x, y = make_problem()
    twin = copy.deepcopy(model)
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.3, momentum=0.9)
    other = fs.SAM(twin.parameters(), torch.optim.SGD, lr=0.3, momentum=0.9)
    for _ in range(3):
        two_steps(optimizer, model, x, y)
        expected = nn.functional.cross_entropy(twin(x), y)
        if gradient_first:
            expected.backward()
        loss = other.step(lambda: backward(twin, x, y))
        assert (loss.item() == expected.item()) is not gradient_first  # at w, or at w' if the caller had g
        assert all(p.grad is None for p in twin.parameters())
    assert_same(weights_of(model), weights_of(twin))


def test_closure_that_zeroes_gradients_itself():
    model, x, y = make_problem()
    twin = copy.deepcopy(model)
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.3)
    other = fs.SAM(twin.parameters(), torch.optim.SGD, lr=0.3)

    def closure():
        other.zero_grad()
        return backward(twin, x, y)

    for _ in range(2):
        two_steps(optimizer, model, x, y)
        with torch.no_grad():  # step turns gradients on for the closure
            other.step(closure)
    assert_same(weights_of(model), weights_of(twin))


def test_failing_closure_restores_the_weights():
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.3)
    before = weights_of(model)
    backward(model, x, y)

    def closure():
        raise KeyError("no more data")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert_same(weights_of(model), before)
    two_steps(optimizer, model, x, y)


def test_restore_is_exact_and_keeps_the_gradients():
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.3, rho=1e4)
    before = weights_of(model)
    memory = [p.data_ptr() for p in model.parameters()]
    backward(model, x, y)
    optimizer.first_step()
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    optimizer.restore()
    assert_same(weights_of(model), before)
    assert [p.data_ptr() for p in model.parameters()] == memory
    assert all(p.grad is not None for p in model.parameters())


def test_one_norm_over_groups_with_their_own_rho_and_adaptive():
    a, b = torch.tensor([1.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    groups = [{"params": [a], "rho": 1.0}, {"params": [b], "adaptive": True, "lr": 0.0}]
    optimizer = fs.SAM(groups, torch.optim.SGD, lr=1.0, rho=0.5)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([2.0])  # norm of (3, 2 * 2) is 5
    optimizer.first_step()
    torch.testing.assert_close(a.detach(), torch.tensor([1.6]))  # 1 + 1/5 * 3
    torch.testing.assert_close(b.detach(), torch.tensor([2.8]))  # 2 + 0.5/5 * 4 * 2
    optimizer.second_step()
    assert (a.item(), b.item()) == (-2.0, 2.0)


def test_zero_gradient_leaves_the_weights():
    w = torch.tensor([1.0, -0.0, 3.0], requires_grad=True)
    optimizer = fs.SAM([w], torch.optim.SGD, lr=0.5)
    w.grad = torch.zeros(3)
    optimizer.first_step()
    assert torch.equal(w.detach().view(torch.int32), torch.tensor([1.0, -0.0, 3.0]).view(torch.int32))
    optimizer.second_step()
    assert w.tolist() == [1.0, 0.0, 3.0]


def test_parameter_without_gradient_stays():
    w, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = fs.SAM([w, unused], torch.optim.SGD, lr=0.5, weight_decay=0.1)
    w.grad = torch.ones(3)
    optimizer.first_step()
    assert torch.equal(unused.detach(), torch.ones(2))
    optimizer.second_step()
    assert torch.equal(unused.detach(), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_round_once(dtype):
    w = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    v = torch.tensor([0.0], requires_grad=True)
    optimizer = fs.SAM([w, v], torch.optim.SGD, lr=0.5, rho=1.3)
    w.grad, v.grad = torch.tensor([3.0, 4.0], dtype=dtype), torch.tensor([12.0])
    optimizer.first_step()
    assert w.dtype == dtype
    assert torch.equal(w.detach(), torch.tensor([1.3, 2.4]).to(dtype))
    torch.testing.assert_close(v.detach(), torch.tensor([1.2]))


def test_channels_last_parameter():
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 8, 3)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8)
    for model in (plain, last):
        optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1, rho=0.5)
        model(x).square().sum().backward()
        optimizer.first_step()
    assert last.weight.stride() != plain.weight.stride()
    torch.testing.assert_close(last.weight, plain.weight, **CLOSE)


def test_learning_rate_scheduler_drives_the_base_optimizer():
    w = torch.tensor([1.0], requires_grad=True)
    optimizer = fs.SAM([w], torch.optim.SGD, lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()" among them
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
        moved = []
        for _ in range(3):
            before = w.item()
            w.grad = torch.tensor([1.0])
            optimizer.first_step()
            optimizer.second_step()
            moved.append(before - w.item())
            scheduler.step()
    assert moved == pytest.approx([1.0, 0.1, 0.01], rel=1e-5)
    assert optimizer.base_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_state_dict_roundtrip_continues_identically(through):
    options = {"lr": 0.1, "momentum": 0.9, "rho": 0.2}
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, **options)
    two_steps(optimizer, model, x, y)
    twin = copy.deepcopy(model)
    other = fs.SAM(twin.parameters(), torch.optim.SGD, lr=9.0, rho=9.0)
    other.load_state_dict(through(optimizer.state_dict()))
    assert other.base_optimizer.state is other.state
    assert other.param_groups[0]["rho"] == 0.2
    scheduler = torch.optim.lr_scheduler.ExponentialLR(other, 1.0)  # still drives the base optimizer
    for _ in range(2):
        two_steps(optimizer, model, x, y)
        two_steps(other, twin, x, y)
        scheduler.step()
    assert_same(weights_of(model), weights_of(twin))


def test_loads_the_state_of_a_bare_base_optimizer():
    model, x, y = make_problem()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model, x, y)
    base.step()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=9.0, rho=0.3)
    optimizer.load_state_dict(base.state_dict())
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["rho"]) == (0.1, 0.3)
    two_steps(optimizer, model, x, y)


def test_optimizer_and_model_copy_together():
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    two_steps(optimizer, model, x, y)
    for through in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        twin, other = through((model, optimizer))
        assert other.param_groups is other.base_optimizer.param_groups
        reference = copy.deepcopy(weights_of(model))
        two_steps(other, twin, x, y)
        assert_same(weights_of(model), reference)  # the copy is independent
    two_steps(optimizer, model, x, y)
    assert_same(weights_of(model), weights_of(twin))


def test_added_group_is_perturbed_and_stepped():
    a, b = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    optimizer = fs.SAM([a], torch.optim.SGD, lr=1.0, rho=0.5)
    optimizer.add_param_group({"params": [b], "lr": 2.0})
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.first_step()
    torch.testing.assert_close(torch.stack([a, b]).detach().flatten(), torch.tensor([1.3, 1.4]))
    optimizer.second_step()
    assert (a.item(), b.item()) == (-2.0, -7.0)


def test_cast_model_gets_a_new_buffer():
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    two_steps(optimizer, model, x, y)
    model.bfloat16()
    two_steps(optimizer, model, x.bfloat16(), y)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def scaled_step(scaler, optimizer: fs.SAM, model, x, y, poison: str = "") -> None:
    """The recipe of the docstring; `poison` puts an overflow into the first or second pass."""

    def scaled_backward(name: str) -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss * (math.inf if poison == name else 1.0)).backward()

    scaled_backward("first")
    scaler.unscale_(optimizer)
    try:
        optimizer.first_step(zero_grad=True)
    except NonFiniteError:
        optimizer.zero_grad()
    else:
        scaled_backward("second")
        optimizer.restore()
        scaler.step(optimizer.base_optimizer)
        optimizer.zero_grad()
    scaler.update()


def test_gradient_scaler_recipe():
    model, x, y = make_problem()
    twin = copy.deepcopy(model)
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.3, momentum=0.9, rho=0.1)
    plain = fs.SAM(twin.parameters(), torch.optim.SGD, lr=0.3, momentum=0.9, rho=0.1)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0)
    for _ in range(2):
        scaled_step(scaler, optimizer, model, x, y)
        two_steps(plain, twin, x, y)
    for ours, theirs in zip(weights_of(model), weights_of(twin), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)

    for poison in ("first", "second"):
        before, scale = weights_of(model), scaler.get_scale()
        scaled_step(scaler, optimizer, model, x, y, poison)
        assert_same(weights_of(model), before)
        assert scaler.get_scale() == scale / 2

    scaled_step(scaler, optimizer, model, x, y)
    two_steps(plain, twin, x, y)
    for ours, theirs in zip(weights_of(model), weights_of(twin), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_steps_out_of_order():
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(StateError, match="second_step was called before first_step"):
        optimizer.second_step()
    with pytest.raises(StateError, match="restore was called before first_step"):
        optimizer.restore()
    with pytest.raises(StateError, match=r"no gradient on any parameter; call loss\.backward"):
        optimizer.first_step()
    with pytest.raises(ArgumentError, match="step needs a closure"):
        optimizer.step()
    backward(model, x, y)
    optimizer.first_step()
    state = optimizer.state_dict()
    for call in (
        optimizer.first_step,
        lambda: optimizer.step(lambda: None),
        lambda: optimizer.load_state_dict(state),
        lambda: copy.deepcopy(optimizer),
    ):
        with pytest.raises(StateError, match="while the weights are perturbed"):
            call()
    optimizer.second_step()


def test_non_finite_gradient_is_named_and_changes_nothing():
    model, x, y = make_problem()
    optimizer = fs.SAM(model.named_parameters(), torch.optim.SGD, lr=0.1)
    before = weights_of(model)
    backward(model, x, y)
    model[2].weight.grad[1, 2] = math.nan
    with pytest.raises(NonFiniteError, match=r"2\.weight, shape \(3, 16\)"):
        optimizer.first_step()
    assert_same(weights_of(model), before)
    optimizer.zero_grad()
    two_steps(optimizer, model, x, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_optimizer": "sgd"}, "base_optimizer is 'sgd'"),
        ({"rho": -0.1}, "rho is -0.1"),
        ({"rho": math.nan}, "rho is nan"),
        ({"rho": "big"}, "rho is 'big'"),
        ({"adaptive": 1}, "adaptive is 1"),
    ],
)
def test_bad_arguments(arguments, message):
    options = {"base_optimizer": torch.optim.SGD, "lr": 0.1, **arguments}
    with pytest.raises(ArgumentError, match=message):
        fs.SAM([torch.ones(1, requires_grad=True)], **options)


def test_bad_group_is_refused_later_too():
    optimizer = fs.SAM([torch.ones(1, requires_grad=True)], torch.optim.SGD, lr=0.1)
    with pytest.raises(ArgumentError, match="rho is -1"):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "rho": -1})
    assert len(optimizer.param_groups) == 1


def test_unsupported_dtypes_are_named():
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = fs.SAM([w], torch.optim.SGD, lr=0.1)
    w.grad = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"float64.*float32, bfloat16 or float16"):
        optimizer.first_step()
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = fs.SAM(table.parameters(), torch.optim.SGD, lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ArgumentError, match="sparse gradient"):
        optimizer.first_step()


def test_a_perturbation_that_fails_half_way_leaves_the_weights(monkeypatch):
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1, rho=0.5)
    before, made = weights_of(model), []

    def buffer(p: Tensor) -> Tensor:
        made.append(p)
        if len(made) == 3:
            raise torch.OutOfMemoryError("no memory for a buffer")
        return torch.empty_like(p)

    monkeypatch.setattr(optimizer, "_buffer", buffer)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(lambda: backward(model, x, y))
    monkeypatch.undo()
    assert_same(weights_of(model), before)
    optimizer.zero_grad()
    optimizer.step(lambda: backward(model, x, y))  # it can go on


def test_maximizing_the_negative_loss_is_minimizing():
    results = []
    for sign in (1, -1):
        model, x, y = make_problem()
        optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1, rho=0.3, maximize=sign < 0)
        for _ in range(2):
            optimizer.zero_grad()
            for step in (optimizer.first_step, optimizer.second_step):
                (sign * nn.functional.cross_entropy(model(x), y)).backward()
                step(zero_grad=True)
        results.append(weights_of(model))
    assert_same(*results)


def test_gradients_that_were_set_to_zero_are_none():
    results = []
    for to_none in (True, False):
        model, x, y = make_problem()
        optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1, rho=0.3)
        for _ in range(3):
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step(lambda model=model, x=x, y=y: backward(model, x, y))
        results.append(weights_of(model))
    assert_same(*results)


def test_a_graph_of_the_weights_before_cannot_be_used_after():
    model, x, y = make_problem()
    optimizer = fs.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    optimizer.first_step(zero_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
