"""The engines on a CUDA device: equal to the CPU's, recorded or not, and without waiting for the device."""

import pytest
import torch

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.models import build_model
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.workers import Worker

from .test_engines import OPTIONS, close, local_round, sources

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
KINDS = ["none", "local", "previous", "synthetic", "mixed", "once", "oracle", "consensus"]


@pytest.fixture(autouse=True)
def float32_throughout():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("capture", [False, True], ids=["eager", "recorded"])
@pytest.mark.parametrize("engine", ["batched", "unfold"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_local_round_is_that_of_the_cpu(tiny_dataset: Dataset, kind, engine, capture) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, 3, seed=0)
    start, device = flat_weights(module), torch.device("cuda")
    data = tiny_dataset.to(device)
    worker = Worker(module, device, engine, capture=capture)
    for number in range(3):
        weights = start + 0.01 * number
        constant = 0.01 * weights.expand(3, -1)
        work = local_round(tiny_dataset, sources(tiny_dataset, weights)[kind], Correction(0.5, 0.2, constant))
        expected = Worker(module, torch.device("cpu"), "batched").train(weights, work, OPTIONS)
        on_gpu = weights.to(device)
        correction = Correction(0.5, 0.2, constant.to(device))
        work = local_round(data, sources(data, on_gpu)[kind], correction)
        for got, wanted in zip(worker.train(on_gpu, work, OPTIONS), expected, strict=True):
            close(got.cpu(), wanted, 1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_recording_on_another_device_than_the_first(tiny_dataset: Dataset) -> None:
    module, device = build_model("mlp", tiny_dataset.image_shape, 3, seed=0), torch.device("cuda", 1)
    data, start = tiny_dataset.to(device), flat_weights(module)
    worker = Worker(module, device, "batched", capture=True)
    for number in range(3):
        weights = start + 0.01 * number
        work = local_round(tiny_dataset, sources(tiny_dataset, weights)["local"])
        expected, _ = Worker(module, torch.device("cpu"), "batched").train(weights, work, OPTIONS)
        on_gpu = weights.to(device)
        updates, _ = worker.train(on_gpu, local_round(data, sources(data, on_gpu)["local"]), OPTIONS)
        close(updates.cpu(), expected, 1e-4)


@pytest.mark.parametrize("engine", ["sequential", "batched", "unfold"])
def test_no_step_waits_for_the_device(tiny_dataset: Dataset, engine) -> None:
    module, device = build_model("mlp", tiny_dataset.image_shape, 3, seed=0), torch.device("cuda")
    data, start = tiny_dataset.to(device), flat_weights(module).to(device)
    worker = Worker(module, device, engine)
    sizes = (6,) if engine == "sequential" else (6, 6, 2)
    work = local_round(data, sources(data, start)["mixed"], sizes=sizes)
    worker.train(start, work, OPTIONS)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        worker.train(start, work, OPTIONS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_whole_rounds(model) -> None:
    config = RunConfig(
        algorithm="fedsam", rounds=2, eval_every=2, local_steps=4, clients=20, model=model, device="cuda", capture=True
    )
    losses = {}
    for engine in ("sequential", "batched", "auto"):
        notes: list[str] = []
        rows = Simulation(config.replace(engine=engine)).run(on_note=notes.append).rounds
        losses[engine] = rows[-1].test_loss
        assert notes[0].startswith("engine: ")
    assert losses["batched"] == pytest.approx(losses["sequential"], rel=0.02)
    assert losses["auto"] == pytest.approx(losses["sequential"], rel=0.02)
