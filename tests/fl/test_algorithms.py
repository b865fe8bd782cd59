"""Each algorithm's local steps against arithmetic done by hand, and what one reduces to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from fedsynsam.fl.algorithm import Knowledge, perturbation_for, real_set
from fedsynsam.fl.client import LocalRound
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset, Images
from fedsynsam.fl.flat import Batch, flat_weights
from fedsynsam.fl.models import build_model
from fedsynsam.fl.perturbation import FixedSet, LocalGradient, NoPerturbation, PreviousUpdate
from fedsynsam.fl.steps import Steps, draw
from fedsynsam.fl.training import finetune
from fedsynsam.fl.workers import Worker, WorkerPool

CPU = torch.device("cpu")
LR, RHO = 0.1, 0.5


class Softmax:
    """Softmax regression without bias, in float64 numpy: the loss, its gradient and a step by hand."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.weights = rng.normal(size=(2, 4)).astype(np.float32).astype(np.float64)  # [classes, pixels]
        self.module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        self.module[1].weight.data = torch.from_numpy(self.weights).float()

    @staticmethod
    def batch(seed: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        images = torch.from_numpy(rng.normal(size=(count, 1, 2, 2)).astype(np.float32))
        return images, torch.from_numpy(rng.integers(2, size=count))

    @staticmethod
    def gradient(weights: np.ndarray, batch: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
        x, y = batch[0].double().numpy().reshape(-1, 4), np.eye(2)[batch[1].numpy()]
        exps = np.exp(x @ weights.T)
        return ((exps / exps.sum(1, keepdims=True) - y).T @ x) / len(x)


def local_round(batches: list[Batch], perturbation, correction: Correction | None = None) -> LocalRound:
    """The round of one client that takes a step with each batch; all batches have the same size."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    stored = Images(images.permute(0, 2, 3, 1), torch.zeros(1), torch.ones(1))
    dataset = Dataset(
        name="batches", x_train=stored, y_train=labels, x_test=stored, y_test=labels, classes=2,
        low=torch.zeros(1), high=torch.ones(1),
    )  # fmt: skip
    steps = Steps(dataset, [np.arange(len(labels)).reshape(len(batches), -1)])
    return LocalRound(steps, perturbation, correction or Correction())


def update_of(problem: Softmax, batches: list[Batch], perturbation, config: RunConfig, correction=None) -> np.ndarray:
    """The update of one client's local round, [2, 4]."""
    work = local_round(batches, perturbation, correction)
    updates, _ = Worker(problem.module, CPU).train(flat_weights(problem.module), work, config)
    return updates.numpy().reshape(2, 4)


def one_step(problem: Softmax, perturbation, batch, **options) -> np.ndarray:
    """The update of one local step, [2, 4]."""
    return update_of(problem, [batch], perturbation, RunConfig(algorithm="fedsam", lr=LR, rho=RHO, **options))


def sam_by_hand(problem: Softmax, direction: np.ndarray, batch) -> np.ndarray:
    ahead = problem.weights + RHO * direction / np.linalg.norm(direction)
    return -LR * problem.gradient(ahead, batch)


def test_fedavg_step() -> None:
    problem, batch = Softmax(), Softmax.batch(0)
    expected = -LR * problem.gradient(problem.weights, batch)
    np.testing.assert_allclose(one_step(problem, NoPerturbation(), batch), expected, atol=1e-6)


def test_fedsam_step() -> None:
    problem, batch = Softmax(), Softmax.batch(0)
    expected = sam_by_hand(problem, problem.gradient(problem.weights, batch), batch)
    np.testing.assert_allclose(one_step(problem, LocalGradient(), batch), expected, atol=1e-6)


def test_fedlesam_steps_against_the_last_global_descent() -> None:
    problem, batch = Softmax(), Softmax.batch(0)
    last = problem.weights + np.random.default_rng(7).normal(size=(2, 4))
    source = PreviousUpdate(flat_weights(problem.module), [torch.from_numpy(last).float().view(-1)])
    expected = sam_by_hand(problem, last - problem.weights, batch)
    np.testing.assert_allclose(one_step(problem, source, batch), expected, atol=1e-6)


def test_fedlesam_takes_a_plain_step_at_a_clients_first_round() -> None:
    problem, batch = Softmax(), Softmax.batch(0)
    plain = one_step(problem, NoPerturbation(), batch)
    np.testing.assert_array_equal(one_step(problem, PreviousUpdate(torch.zeros(8), [None]), batch), plain)


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("once", [False, True])
def test_fedsynsam_step_mixes_the_synthetic_gradient(beta, once) -> None:
    problem, batch, shared = Softmax(), Softmax.batch(0), Softmax.batch(1)
    mixed = beta * problem.gradient(problem.weights, shared) + (1 - beta) * problem.gradient(problem.weights, batch)
    expected = sam_by_hand(problem, mixed, batch)
    np.testing.assert_allclose(one_step(problem, FixedSet(shared, beta, once=once), batch), expected, atol=1e-6)


@pytest.mark.parametrize("once", [False, True])
def test_refresh_decides_where_the_synthetic_gradient_is_taken(once) -> None:
    problem, batch, shared = Softmax(), Softmax.batch(0), Softmax.batch(1)
    config = RunConfig(algorithm="fedsynsam", lr=LR, rho=RHO)
    source = FixedSet(shared, 1.0, once=once)
    update = update_of(problem, [batch, batch], source, config)
    weights = problem.weights
    first = problem.gradient(weights, shared)
    for _ in range(2):
        direction = first if once else problem.gradient(weights, shared)
        weights = weights - LR * problem.gradient(weights + RHO * direction / np.linalg.norm(direction), batch)
    np.testing.assert_allclose(update, weights - problem.weights, atol=1e-6)


def test_dynafeds_server_descends_on_its_set() -> None:
    problem, shared = Softmax(), Softmax.batch(1)
    start = problem.weights + 0.5
    tuned = finetune(Worker(problem.module, CPU), torch.from_numpy(start).float().view(-1), shared, rate=0.3, steps=3)
    weights = start
    for _ in range(3):
        weights = weights - 0.3 * problem.gradient(weights, shared)
    np.testing.assert_allclose(tuned.numpy().reshape(2, 4), weights, atol=1e-6)


def test_momentum_and_weight_decay() -> None:
    problem, batch = Softmax(), Softmax.batch(0)
    config = RunConfig(algorithm="fedavg", lr=LR, momentum=0.9, weight_decay=0.01)
    update = update_of(problem, [batch] * 3, NoPerturbation(), config)
    weights, velocity = problem.weights, 0.0
    for _ in range(3):
        velocity = 0.9 * velocity + problem.gradient(weights, batch) + 0.01 * weights
        weights = weights - LR * velocity
    np.testing.assert_allclose(update, weights - problem.weights, atol=1e-6)


def test_long_gradients_are_clipped_before_they_are_corrected() -> None:
    problem, batch = Softmax(), Softmax.batch(0)
    first = float(np.linalg.norm(problem.gradient(problem.weights, batch)))
    config = RunConfig(algorithm="fedavg", lr=LR, weight_decay=0.01, clip_norm=0.9 * first)
    update = update_of(problem, [batch] * 3, NoPerturbation(), config)
    weights, lengths = problem.weights, []
    for _ in range(3):
        gradient = problem.gradient(weights, batch)
        lengths.append(float(np.linalg.norm(gradient)))
        weights = weights - LR * (gradient * min(1.0, 0.9 * first / lengths[-1]) + 0.01 * weights)
    np.testing.assert_allclose(update, weights - problem.weights, atol=1e-6)
    assert lengths[0] > 0.9 * first


@pytest.mark.parametrize("algorithm", ["fedsam", "fedlesam", "fedsynsam", "realset", "oracle"])
def test_rho_zero_is_fedavg_bit_for_bit(tiny_dataset: Dataset, algorithm) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    start, members = flat_weights(module), np.arange(50)

    def update(name: str) -> torch.Tensor:
        config = RunConfig(algorithm=name, rho=0.0, local_steps=5, batch_size=8)
        shared = real_set(tiny_dataset, 2, seed=0)
        knowledge = Knowledge(start, [start + 0.1], shared)
        source = perturbation_for(config, knowledge, tiny_dataset, 1, [0])
        assert isinstance(source, NoPerturbation) == (name == "fedavg")
        steps = Steps(tiny_dataset, [draw(members, config, np.random.default_rng(0))])
        return Worker(module, CPU).train(start, LocalRound(steps, source, Correction()), config)[0]

    assert torch.equal(update(algorithm), update("fedavg"))


def test_batches_cover_the_clients_examples_before_repeating() -> None:
    config = RunConfig(local_steps=5, batch_size=4)
    members = np.array([3, 14, 15, 92, 65, 35, 89, 79])
    drawn = draw(members, config, np.random.default_rng(0))
    assert drawn.shape == (5, 4)
    for epoch in (drawn[0:2], drawn[2:4]):
        assert sorted(epoch.ravel()) == sorted(members)


def test_a_client_with_few_examples_uses_all_of_them() -> None:
    drawn = draw(np.array([1, 2, 3]), RunConfig(local_steps=4), np.random.default_rng(0))
    assert [sorted(batch) for batch in drawn] == [[1, 2, 3]] * 4


def test_steps_gather_what_was_drawn_and_pad_the_rest(tiny_dataset: Dataset) -> None:
    drawn = [np.array([[5, 7, 9], [1, 2, 3]]), np.array([[4], [4]])]
    steps = Steps(tiny_dataset, drawn)
    assert (len(steps), steps.sizes) == (2, [3, 1])
    images, labels, share = steps[1]
    assert torch.equal(images[0], tiny_dataset.x_train[torch.tensor([1, 2, 3])])
    assert torch.equal(images[1, :1], tiny_dataset.x_train[torch.tensor([4])])
    assert torch.equal(labels[0], tiny_dataset.y_train[1:4])
    assert labels[1, 0] == tiny_dataset.y_train[4]
    torch.testing.assert_close(share, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1, 0, 0]]))
    assert Steps(tiny_dataset, drawn[:1])[0].share is None
    assert Steps(tiny_dataset, drawn[:1], width=4)[0].share.tolist() == [[pytest.approx(1 / 3)] * 3 + [0]]


def test_real_set_is_balanced_and_fixed(tiny_dataset: Dataset) -> None:
    images, labels = real_set(tiny_dataset, 4, seed=1)
    assert labels.bincount().tolist() == [4] * 3
    assert torch.equal(images, real_set(tiny_dataset, 4, seed=1)[0])
    assert not torch.equal(images, real_set(tiny_dataset, 4, seed=2)[0])


def test_the_mean_loss_is_that_of_the_stepping_gradients() -> None:
    problem, batch = Softmax(), Softmax.batch(0)
    config = RunConfig(algorithm="fedavg", lr=LR)
    work = local_round([batch], NoPerturbation())
    _, losses = Worker(problem.module, CPU).train(flat_weights(problem.module), work, config)
    assert losses.tolist() == pytest.approx([functional.cross_entropy(problem.module(batch[0]), batch[1]).item()])


def test_pool_keeps_the_order_and_passes_errors_on() -> None:
    pool = WorkerPool(lambda: Worker(Softmax().module, CPU), threads=3)
    try:
        assert pool.map(lambda worker, item: item * item, list(range(20))) == [i * i for i in range(20)]
        with pytest.raises(ZeroDivisionError):
            pool.map(lambda worker, item: 1 // item, [1, 0, 1])
        assert pool.map(lambda worker, item: item, [1, 2]) == [1, 2]  # no worker was lost
    finally:
        pool.close()
