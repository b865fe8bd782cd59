"""The synthetic set: what it is learned from, that learning helps, and the two losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.flat import FlatModel, flat_weights
from fedsynsam.fl.labels import LabelMix
from fedsynsam.fl.matching import FlatLoss, gradient_mismatch, trajectory_mismatch
from fedsynsam.fl.metrics import CutShort, StepProgress
from fedsynsam.fl.models import build_model
from fedsynsam.fl.synthesis import Adam, first_set, learn
from fedsynsam.fl.synthetic import SyntheticSet


def mix_of(module: torch.nn.Module, dataset: Dataset) -> LabelMix:
    mix = LabelMix.of(module, dataset.classes)
    assert mix is not None
    return mix


def trained_evidence(dataset: Dataset, module: torch.nn.Module, rounds: int = 10) -> Evidence:
    """Rounds of gradient descent on all data, by clients of one class each, as many examples of one as of another."""
    model, evidence = FlatModel(module, torch.device("cpu")), Evidence(rounds, mix_of(module, dataset))
    evidence.add(0, model.weights[0].clone())
    for number in range(1, rounds + 1):
        descents = []
        for label in range(dataset.classes):
            members = torch.nonzero(dataset.y_train == label)[:, 0]
            model.backward((dataset.x_train[members], dataset.y_train[members]))
            descents.append(-0.2 * model.gradient[0])
        model.weights += sum(descents) / len(descents)
        evidence.add(number, model.weights[0].clone(), descents)
    return evidence


def cosine_with_truth(module, dataset: Dataset, evidence: Evidence, synthetic: SyntheticSet) -> float:
    model, cosines = FlatModel(module, torch.device("cpu")), []
    for weights in evidence.weights.values():
        model.weights.copy_(weights[None])
        model.backward((dataset.x_train[:], dataset.y_train))
        truth = model.gradient[0].clone()
        model.backward(synthetic.batch)
        cosines.append(float(functional.cosine_similarity(truth, model.gradient[0], dim=0)))
    return float(np.mean(cosines))


def config(**options) -> RunConfig:
    defaults = {"synthetic_start": 8, "synthetic_segment": 1, "synthetic_images": 3}
    return RunConfig(**(defaults | options))


@pytest.mark.parametrize(("method", "steps", "gain"), [("gradient", 150, 0.3), ("trajectory", 60, 0.1)])
def test_learning_brings_the_gradient_closer_to_the_global_one(tiny_dataset, method, steps, gain) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    evidence = trained_evidence(tiny_dataset, module)
    settings = config(synthetic_method=method, synthetic_steps=steps)
    start, first_loss = learn(config(synthetic_steps=1), module, tiny_dataset, evidence, None, 10)
    learned, last_loss = learn(settings, module, tiny_dataset, evidence, None, 10)
    before, after = (cosine_with_truth(module, tiny_dataset, evidence, item) for item in (start, learned))
    assert after > before + gain, (before, after)
    assert last_loss < first_loss - gain / 2, (first_loss, last_loss)


def test_learning_repeats_bit_for_bit_and_stays_in_range(tiny_dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    evidence = trained_evidence(tiny_dataset, module)
    (first, loss), (second, again) = (
        learn(config(synthetic_steps=10), module, tiny_dataset, evidence, None, 10) for _ in range(2)
    )
    assert loss == again
    assert all(torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))
    assert bool((first.images >= tiny_dataset.low.view(-1, 1, 1)).all())
    assert bool((first.images <= tiny_dataset.high.view(-1, 1, 1)).all())


def test_progress_is_shown_and_learning_can_be_cut_short(tiny_dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    evidence, seen = trained_evidence(tiny_dataset, module), []

    def on_step(progress: StepProgress) -> None:
        seen.append((progress.stage, progress.done, progress.total, progress.round))
        if progress.done == 3:
            raise CutShort

    cut, _ = learn(config(synthetic_steps=50), module, tiny_dataset, evidence, None, 10, on_step)
    assert seen == [("synthesis", done, 50, 10) for done in (1, 2, 3)]
    assert not torch.equal(cut.images, first_set(tiny_dataset, 3, np.random.default_rng(0)).images)


def test_a_renewal_starts_from_the_old_set_and_takes_a_third_of_the_steps(tiny_dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    evidence, totals = trained_evidence(tiny_dataset, module), []
    old = first_set(tiny_dataset, 3, np.random.default_rng(5))
    new, _ = learn(
        config(synthetic_steps=10), module, tiny_dataset, evidence, old, 10, lambda step: totals.append(step.total)
    )
    assert totals == [4] * 4
    moved = (new.images - old.images).abs().max()
    assert 0 < moved < 0.05 * 4 * 1.5  # Adam moves a pixel by about its rate in a step


def test_first_set_is_balanced(tiny_dataset) -> None:
    first = first_set(tiny_dataset, 2, np.random.default_rng(0))
    assert first.images.shape == (6, 1, 8, 8)
    assert first.logits.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(first.batch[1].sum(1), torch.ones(6))
    assert first.num_bytes == 4 * (6 * 64 + 6 * 3)


def test_evidence_forgets_old_rounds_and_samples_within_what_is_left() -> None:
    evidence = Evidence(window=4)
    evidence.add(0, torch.tensor([0.0]))
    assert evidence.rounds == []
    for number in range(1, 10):
        evidence.add(number, torch.tensor([float(number)]), [torch.tensor([0.25])] * 3)
    assert sorted(evidence.weights) == sorted(evidence.descents) == [5, 6, 7, 8, 9]
    assert evidence.rounds == [6, 7, 8, 9], "the weights before round 5 are gone"
    rng = np.random.default_rng(0)
    pairs = [evidence.segment(2, 1, rng) for _ in range(100)]
    assert {(float(start), float(goal)) for start, goal in pairs} == {(5.0, 7.0), (6.0, 8.0), (7.0, 9.0)}
    averaged = [float(evidence.segment(2, 3, rng)[1]) for _ in range(50)]
    assert set(averaged) == {8.0}


def test_a_rounds_mean_descent_is_drawn_with_the_weights_it_started_from() -> None:
    evidence, rng = Evidence(window=3), np.random.default_rng(0)
    evidence.add(0, torch.zeros(1))
    for number in range(1, 6):
        descents = [torch.tensor([float(number + client)]) for client in (-1, 1)]
        evidence.add(number, torch.tensor([10.0 * number]), descents)
        assert descents[0] == number - 1, "it is not ours to change"
    drawn = [evidence.draw(rng) for _ in range(40)]
    assert {(float(start), float(goal)) for start, goal, _ in drawn} == {(20, 23), (30, 34), (40, 45)}
    assert all(mix is None for *_, mix in drawn), "nobody told how to read labels"


def test_a_cohorts_mix_is_the_mean_of_its_clients(tiny_dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    evidence, weights = Evidence(2, mix_of(module, tiny_dataset)), flat_weights(module)
    descents = []
    for classes in ((0,), (0, 2)):
        descent = torch.zeros_like(weights)
        descent[[c - tiny_dataset.classes for c in classes]] = 1.0  # the biases of the last layer
        descents.append(descent)
    evidence.add(0, weights)
    evidence.add(1, weights, descents)
    mix = evidence.draw(np.random.default_rng(0))[2]
    assert mix is not None
    torch.testing.assert_close(mix, torch.tensor([0.75, 0.0, 0.25]))


def test_gradient_mismatch_is_one_minus_the_cosine(tiny_dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    start, loss = flat_weights(module), FlatLoss(module)
    synthetic = first_set(tiny_dataset, 2, np.random.default_rng(0))
    gradient = loss.gradient(start, *synthetic.batch).detach()
    for goal, expected in ((start - 0.1 * gradient, 0.0), (start + 0.1 * gradient, 2.0)):
        mismatch = gradient_mismatch(loss, synthetic.images, synthetic.logits, start, goal)
        assert mismatch.item() == pytest.approx(expected, abs=1e-4)


def test_shares_weigh_images_as_often_as_they_say(tiny_dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    start, loss = flat_weights(module), FlatLoss(module)
    images, labels = first_set(tiny_dataset, 1, np.random.default_rng(0)).batch
    shares = torch.tensor([0.5, 0.0, 0.5])
    expected = loss.gradient(start, images[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(loss.gradient(start, images, labels, shares), expected)
    torch.testing.assert_close(
        loss.gradient(start, images, labels, torch.full((3,), 1 / 3)), loss.gradient(start, images, labels)
    )


@pytest.mark.parametrize("size", [1, 2])
def test_images_count_as_their_classes_do_in_the_cohort(tiny_dataset, size) -> None:
    """Cohorts without one or two of the classes teach all of them, because the mix of labels says what is missing."""
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    model, weights = FlatModel(module, torch.device("cpu")), flat_weights(module)
    found = []
    for label_mix in (None, mix_of(module, tiny_dataset)):
        evidence = Evidence(10, label_mix)
        evidence.add(0, weights)
        for number in range(1, 11):
            descents = []
            for label in range(number, number + size):
                members = torch.nonzero(tiny_dataset.y_train == label % 3)[:, 0]
                model.weights.copy_(weights[None])
                model.backward((tiny_dataset.x_train[members], tiny_dataset.y_train[members]))
                descents.append(-0.2 * model.gradient[0])
            evidence.add(number, weights, descents)
        learned, _ = learn(config(synthetic_steps=100), module, tiny_dataset, evidence, None, 10)
        found.append(cosine_with_truth(module, tiny_dataset, evidence, learned))
    assert found[1] > found[0] + 0.1, found
    assert found[1] > 0.8, found


def test_trajectory_mismatch_follows_gradient_descent(tiny_dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    start, loss = flat_weights(module), FlatLoss(module)
    synthetic = first_set(tiny_dataset, 2, np.random.default_rng(0))
    reached = start
    for _ in range(3):
        reached = reached - 0.04 * loss.gradient(reached, *synthetic.batch).detach()
    arguments = (loss, synthetic.images, synthetic.logits, synthetic.log_rate, start)
    assert trajectory_mismatch(*arguments, reached, 3).item() == pytest.approx(0.0, abs=1e-8)
    assert trajectory_mismatch(*arguments, reached, 0).item() == pytest.approx(1.0)
    assert trajectory_mismatch(*arguments, start, 0).item() == 0.0


def test_adam_is_pytorchs() -> None:
    """Bit for bit, under a schedule, and for a tensor that never has a gradient."""
    rng = torch.Generator().manual_seed(0)
    own = [torch.randn(shape, generator=rng, requires_grad=True) for shape in ((5, 3), (4,), ())]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in own]
    rates = (0.05, 0.01, 0.1)
    ours = Adam(dict(zip(own, rates, strict=True)))
    groups = [{"params": [tensor], "lr": rate} for tensor, rate in zip(theirs, rates, strict=True)]
    reference = torch.optim.Adam(groups, foreach=False)
    for step in range(20):
        factor = 1 / (1 + step)
        for mine, other in zip(own[:2], theirs[:2], strict=True):
            mine.grad = torch.randn(mine.shape, generator=rng)
            other.grad = mine.grad.clone()
        ours.step(factor)
        for group, rate in zip(reference.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        reference.step()
        assert all(torch.equal(mine, other) for mine, other in zip(own, theirs, strict=True))
        assert all(tensor.grad is None for tensor in own)
