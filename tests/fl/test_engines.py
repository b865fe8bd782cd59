"""The engines do the same arithmetic; `auto` takes the fastest; a recorded round is the round."""

import copy
import json
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import fedsynsam as fs
from fedsynsam.errors import ConfigError
from fedsynsam.fl import engine as engines
from fedsynsam.fl.batched import BatchedModel, UnfoldConv2d, unfold_convolutions
from fedsynsam.fl.capture import Recorder
from fedsynsam.fl.client import LocalRound
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset, channels_last, dataset_from_arrays
from fedsynsam.fl.engine import Choice, choose, groups
from fedsynsam.fl.flat import FlatModel, RowBatch, flat_weights
from fedsynsam.fl.models import build_model
from fedsynsam.fl.perturbation import Consensus, FixedSet, FreshData, LocalGradient, NoPerturbation, PreviousUpdate
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.workers import Worker, WorkerPool
from fedsynsam.ops import backend

CPU = torch.device("cpu")
SHAPES = {"cnn": (1, 16, 16), "mlp": (1, 8, 8), "resnet18": (3, 8, 8)}
# Float32 sums in another order: each layer adds some 1e-7 of its largest value, and ResNet has eighteen.
TOLERANCE = {"cnn": 1e-5, "mlp": 1e-5, "resnet18": 1e-4}


def random_batch(shape: tuple[int, int, int], rows: int, width: int, sizes: list[int]) -> RowBatch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(rows, width, *shape[1:], shape[0], generator=generator).movedim(
        -1, -3
    )  # as `Images` gives them
    labels = torch.randint(4, (rows, width), generator=generator)
    share = torch.zeros(rows, width)
    for row, size in enumerate(sizes):
        share[row, :size] = 1 / size
    return RowBatch(images, labels, share)


def row_weights(module: nn.Module, rows: int) -> torch.Tensor:
    flat = flat_weights(module)
    generator = torch.Generator().manual_seed(4)
    return flat + 0.01 * torch.randn(rows, len(flat), generator=generator)


@pytest.fixture(autouse=True)
def smooth_resnet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-18 without ReLU's kink: of so many units one is often so near zero that rounding switches it."""
    if "resnet18" in request.node.name:
        monkeypatch.setattr(torch, "relu", functional.softplus)  # which nn.ReLU calls, too


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("unfold", [False, True], ids=["grouped", "unfold"])
@pytest.mark.parametrize("name", SHAPES)
def test_each_row_is_a_model_of_its_own(name, unfold) -> None:
    module = build_model(name, SHAPES[name], 4, seed=0)
    sizes = [5, 2, 1]
    batch, weights = random_batch(SHAPES[name], 3, 5, sizes), row_weights(module, 3)
    batched, single = BatchedModel(module, CPU, 3, unfold=unfold), FlatModel(module, CPU)
    batched.weights.copy_(weights)
    batched.gradient.fill_(torch.nan)
    losses = batched.backward_each(batch)
    for row, size in enumerate(sizes):
        single.weights.copy_(weights[row])
        loss = single.backward((batch.images[row, :size], batch.labels[row, :size]))
        close(losses[row : row + 1], loss, 1e-5)
        close(batched.gradient[row], single.gradient[0], TOLERANCE[name])
    assert torch.equal(batched.weights, weights)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft labels"])
@pytest.mark.parametrize(("name", "shape"), [("cnn", SHAPES["cnn"]), ("resnet18", (1, 8, 8)), ("resnet18", (3, 8, 8))])
def test_one_batch_for_all_rows(name, shape, soft) -> None:
    module = build_model(name, shape, 4, seed=0)
    generator = torch.Generator().manual_seed(6)
    images, labels = channels_last(torch.randn(6, *shape, generator=generator)), torch.arange(6) % 4
    targets = functional.one_hot(labels, 4).float() * 0.8 + 0.05 if soft else labels
    batched, single = BatchedModel(module, CPU, 2, unfold=False), FlatModel(module, CPU)
    batched.weights.copy_(row_weights(module, 2))
    losses = batched.backward((images, targets))
    for row in range(2):
        single.weights.copy_(batched.weights[row])
        close(losses[row : row + 1], single.backward((images, targets)), 1e-5)
        close(batched.gradient[row], single.gradient[0], TOLERANCE[name])


def test_padding_has_no_share_in_a_flat_model_either() -> None:
    module = build_model("cnn", SHAPES["cnn"], 4, seed=0)
    batch, model = random_batch(SHAPES["cnn"], 1, 5, [2]), FlatModel(module, CPU)
    loss = model.backward_each(batch)
    gradient = model.gradient.clone()
    close(loss, model.backward((batch.images[0, :2], batch.labels[0, :2])), 1e-6)
    close(gradient, model.gradient, 1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(3, 4, 1, stride=2, bias=False),
    ],
    ids=["plain", "everything", "pointwise"],
)
def test_unfolded_convolution(layer) -> None:
    unfolded = nn.Sequential(copy.deepcopy(layer))
    unfold_convolutions(unfolded)
    assert isinstance(unfolded[0], UnfoldConv2d)
    x = torch.randn(2, 3, 9, 8)
    close(unfolded(x).detach(), layer(x).detach(), 1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1)])
def test_other_convolutions_stay_as_they_are(layer) -> None:
    kind = type(layer)
    unfold_convolutions(layer)
    assert type(layer) is kind


def local_round(dataset: Dataset, perturbation, correction: Correction | None = None, sizes=(6, 6, 2)) -> LocalRound:
    rng = np.random.default_rng(5)
    draws = [rng.integers(len(dataset.y_train), size=(4, size)) for size in sizes]
    return LocalRound(Steps(dataset, draws), perturbation, correction or Correction())


def sources(dataset: Dataset, weights: torch.Tensor) -> dict:
    draws = [np.random.default_rng(row).integers(len(dataset.y_train), size=(4, 6)) for row in range(3)]
    shared = dataset.x_train[torch.arange(6)], functional.one_hot(dataset.y_train[:6], 3).float()
    return {
        "none": NoPerturbation(),
        "local": LocalGradient(),
        "previous": PreviousUpdate(weights, [weights + 0.1, None, weights - 0.2]),
        "synthetic": FixedSet(shared, 1.0),
        "mixed": FixedSet(shared, 0.5),
        "once": FixedSet(shared, 0.5, once=True),
        "oracle": FreshData(Steps(dataset, draws)),
        "consensus": Consensus(0.01 * weights.expand(3, -1), 0.02 * weights, 0.1),
    }


OPTIONS = RunConfig(algorithm="fedsam", rho=0.1, lr=0.1, momentum=0.5, weight_decay=0.01, clip_norm=1.0)


@pytest.mark.parametrize("kind", ["none", "local", "previous", "synthetic", "mixed", "once", "oracle"])
def test_a_local_round_is_the_same_in_every_engine(tiny_dataset: Dataset, kind) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, 3, seed=0)
    start = flat_weights(module)
    constant = 0.01 * torch.randn(3, len(start), generator=torch.Generator().manual_seed(0))
    correction = Correction(scale=0.5, decay=0.2, constant=constant)
    work = local_round(tiny_dataset, sources(tiny_dataset, start)[kind], correction)
    updates, losses = Worker(module, CPU, "batched").train(start, work, OPTIONS)
    assert updates.shape == (3, len(start))
    single = Worker(module, CPU)
    for row in range(3):
        rng = np.random.default_rng(5)
        draws = [rng.integers(len(tiny_dataset.y_train), size=(4, size)) for size in (6, 6, 2)]
        own = sources(tiny_dataset, start)
        own["previous"] = PreviousUpdate(start, [[start + 0.1, None, start - 0.2][row]])
        oracle = np.random.default_rng(row).integers(len(tiny_dataset.y_train), size=(4, 6))
        own["oracle"] = FreshData(Steps(tiny_dataset, [oracle]))
        alone = LocalRound(Steps(tiny_dataset, [draws[row]]), own[kind], Correction(0.5, 0.2, constant[row : row + 1]))
        update, loss = single.train(start, alone, OPTIONS)
        close(updates[row], update[0], 1e-5)
        close(losses[row : row + 1], loss, 1e-5)


@pytest.mark.parametrize("kind", ["none", "local", "previous", "mixed", "once", "oracle", "consensus"])
def test_a_recording_replays_the_next_rounds(tiny_dataset: Dataset, kind) -> None:
    """With a recorder that repeats the call: what a graph would read must be the recording's own tensors.

    Like a graph it does not keep them alive.
    """
    module = build_model("mlp", tiny_dataset.image_shape, 3, seed=0)
    start = flat_weights(module)
    calls = []

    def record(call):
        weak = weakref.ref(call)
        calls.append(weak)
        return lambda: weak()()

    worker, plain = Worker(module, CPU, "batched"), Worker(module, CPU, "batched")
    worker._recorder = Recorder(record)
    for number in range(3):
        weights = start + 0.01 * number
        correction = Correction(constant=weights.expand(3, -1))
        work = local_round(tiny_dataset, sources(tiny_dataset, weights)[kind], correction)
        kept = [tensor.clone() for tensor in [weights, *work.tensors()]]
        got, expected = worker.train(weights, work, OPTIONS), plain.train(weights, work, OPTIONS)
        assert len(got) == (3 if kind == "consensus" else 2)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
        for before, now in zip(kept, [weights, *work.tensors()], strict=True):
            assert torch.equal(before, now), "a recording must not write into the caller's tensors"
    assert len(calls) == 1
    other = LocalRound(Steps(tiny_dataset, [np.zeros((4, 6), int)] * 2), NoPerturbation(), Correction())
    worker.train(start, other, OPTIONS)
    assert len(calls) == 2, "other shapes need a recording of their own"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_backend_that_the_caller_uses_holds_in_the_threads(tiny_dataset: Dataset, threads) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, 3, seed=0)
    pool = WorkerPool(lambda: Worker(module, CPU), threads)
    with fs.use_backend("reference"):
        assert pool.map(lambda worker, item: backend.choose("topk", CPU), [0, 1, 2]) == ["reference"] * 3
    usual = backend.choose("topk", CPU)
    assert pool.map(lambda worker, item: backend.choose("topk", CPU), [0, 1, 2]) == [usual] * 3
    pool.close()


def test_groups() -> None:
    items = list(range(7))
    assert groups(items, Choice("sequential", 1, ""), 2) == [[item] for item in items]
    assert groups(items, Choice("batched", 100, ""), 2) == [[0, 1, 2], [3, 4, 5, 6]]
    assert groups(items, Choice("batched", 2, ""), 1) == [[0], [1, 2], [3, 4], [5, 6]]
    assert groups(items[:1], Choice("batched", 100, ""), 4) == [[0]]
    assert groups([], Choice("batched", 100, ""), 2) == []


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ({"sequential": 3.0, "batched": 1.0, "unfold": 2.0}, "batched"),
        ({"sequential": 3.0, "batched": 2.0, "unfold": 1.0}, "unfold"),
        ({"sequential": 1.0, "batched": 0.95, "unfold": 2.0}, "sequential"),  # not worth other bits
    ],
)
def test_auto_takes_the_fastest(tiny_config, tiny_dataset, monkeypatch, milliseconds, expected) -> None:
    monkeypatch.setattr(engines, "_seconds", lambda *arguments: 1e-3 * milliseconds[arguments[4]])
    module = build_model("mlp", tiny_dataset.image_shape, 3, seed=0)
    choice = choose(tiny_config.replace(engine="auto"), module, tiny_dataset, CPU, threads=1)
    assert choice.engine == expected
    assert choice.rows == (1 if expected == "sequential" else 3)
    assert f"engine: {expected} (measured" in choice.note
    assert "sequential 3, batched" in choice.note or expected == "sequential"


def test_auto_really_measures(tiny_config: RunConfig, tiny_dataset: Dataset) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, 3, seed=0)
    before = flat_weights(module)
    choice = choose(tiny_config.replace(engine="auto"), module, tiny_dataset, CPU, threads=1)
    assert choice.engine in ("sequential", "batched", "unfold")
    assert torch.equal(flat_weights(module), before)
    assert choose(tiny_config, module, tiny_dataset, CPU, threads=1) == Choice("sequential", 1, "engine: sequential")


@pytest.mark.parametrize("algorithm", ["fedavg", "fedsam", "fedlesam", "fedsynsam"])
def test_runs_of_the_engines_stay_together(tiny_config: RunConfig, algorithm) -> None:
    """Whole runs without top-k, whose threshold could amplify the last bit: to rounding, grown over the rounds."""
    config = tiny_config.replace(algorithm=algorithm, compressor="none", cosines=True, rho=0.05)
    rows = {name: Simulation(config.replace(engine=name)).run().rounds for name in ("sequential", "batched", "unfold")}
    for name in ("batched", "unfold"):
        for one, other in zip(rows["sequential"], rows[name], strict=True):
            assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
            assert other.uplink_bytes == one.uplink_bytes
            assert (other.cosines is None) == (one.cosines is None)
            for key, value in (one.cosines or {}).items():
                assert other.cosines[key] == pytest.approx(value, abs=2e-3)


def test_batches_are_padded_to_the_largest_client(tiny_config: RunConfig, monkeypatch) -> None:
    widths, plain = set[int](), Steps.__init__

    def noted(steps, dataset, draws, width=None):
        plain(steps, dataset, draws, width)
        widths.add(steps._indices.shape[2])

    monkeypatch.setattr(Steps, "__init__", noted)
    simulation = Simulation(tiny_config.replace(engine="batched", batch_size=100_000))
    simulation.run()
    assert widths == {max(map(len, simulation._parts))}


def test_a_resumed_run_keeps_its_engine(tiny_config: RunConfig, tmp_path, monkeypatch) -> None:
    class Interrupted(Exception):
        pass

    def stop(row) -> None:
        if row.round == 3:
            raise Interrupted

    config = tiny_config.replace(engine="auto")
    fastest = {"sequential": 3.0, "batched": 1.0, "unfold": 2.0}
    monkeypatch.setattr(engines, "_seconds", lambda *arguments: fastest[arguments[4]])
    with pytest.raises(Interrupted):
        Simulation(config, tmp_path / "run").run(stop)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["engine"] == "batched"
    fastest["unfold"] = 0.1
    notes: list[str] = []
    result = Simulation(config, tmp_path / "run", resume=True).run(on_note=notes.append)
    assert result.config.engine == "batched"
    assert notes[0] == "engine: batched"
    with pytest.raises(ConfigError, match=r"has engine='batched', not 'unfold'"):
        Simulation(tiny_config.replace(engine="unfold"), tmp_path / "run", resume=True).run()


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="engine: unknown value 'fast'; known: auto, sequential, batched, unfold"):
        RunConfig(engine="fast")


def test_uint8_and_float_images_train_alike() -> None:
    rng = np.random.default_rng(0)
    raw, labels = rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), np.arange(30) % 3
    arrays = {"y_train": labels, "y_test": labels}
    module = build_model("mlp", (1, 8, 8), 3, seed=0)
    updates = []
    for images in (raw, (raw / np.float32(255)).astype(np.float32)):
        dataset = dataset_from_arrays("x", {**arrays, "x_train": images, "x_test": images})
        work = local_round(dataset, LocalGradient(), sizes=(6,))
        updates.append(Worker(module, CPU).train(flat_weights(module), work, OPTIONS)[0])
    close(*updates, 1e-5)
