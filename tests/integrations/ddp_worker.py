"""One rank of test_ddp.py: `ddp_worker.py SCENARIO RANK SIZE STORE`; asserts, prints a line, exits 0."""

from __future__ import annotations

import copy
import faulthandler
import gc
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fedsynsam as fs


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    images = torch.randn(16, 20, generator=generator)
    return images, (images[:, :3].argmax(dim=1))


def wrapped(spec: str | None, small_buckets: bool = True) -> tuple[DistributedDataParallel, fs.DDPState | None]:
    inner = model()
    parallel = DistributedDataParallel(inner, bucket_cap_mb=0.01 if small_buckets else 25)
    if spec is None:
        return parallel, None
    state = fs.DDPState(parallel, spec, seed=3)
    parallel.register_comm_hook(state, fs.ddp_hook)
    return parallel, state


def train(parallel: nn.Module, rank: int, steps: range, lr: float = 0.1) -> list[float]:
    optimizer, losses = torch.optim.SGD(parallel.parameters(), lr=lr), []
    for step in steps:
        images, labels = batch(rank, step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def check_same_everywhere(tensor: Tensor) -> None:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    assert all(torch.equal(gathered[0], other) for other in gathered), "ranks differ"


def none_is_the_plain_mean(rank: int, size: int) -> None:
    plain, ours = wrapped(None)[0], wrapped("none")[0]
    train(plain, rank, range(6))
    train(ours, rank, range(6))
    torch.testing.assert_close(flat(ours), flat(plain), rtol=1e-5, atol=1e-6)


def compressed_training_converges(rank: int, size: int) -> None:
    for spec in ("topk:0.05", "topk:0.1+quantize:4", "quantize:8"):
        parallel, state = wrapped(spec)
        losses = train(parallel, rank, range(150))
        check_same_everywhere(flat(parallel))
        assert sum(losses[-10:]) < 0.6 * sum(losses[:10]), (spec, losses[:3], losses[-3:])
        assert state is not None
        dense = 4 * flat(parallel).numel() * 150
        assert state.bytes_sent < dense / 3, (spec, state.bytes_sent, dense)


def nothing_is_lost(rank: int, size: int) -> None:
    """What was sent plus the residual is the sum of all gradients, although buckets are laid out anew."""
    parallel, state = wrapped("topk:0.02")
    assert state is not None
    names = [name for name, _ in parallel.module.named_parameters()]
    summed = dict.fromkeys(names, torch.zeros(()))
    sent = dict.fromkeys(names, torch.zeros(()))
    layouts = set()
    original = state.compress

    def recorded(gradients: dict[str, Tensor], seed: int) -> fs.Payload:
        layouts.add(tuple(gradients))
        for name, gradient in gradients.items():
            summed[name] = summed[name] + gradient.double()
        payload = original(gradients, seed)
        for name, part in payload.decompress().items():
            sent[name] = sent[name] + part.double()
        return payload

    state.compress = recorded
    train(parallel, rank, range(5), lr=0.01)
    assert len(layouts) > len(state._states), "DDP did not lay its buckets out anew: the test shows nothing"
    residuals = state.state_dict()
    for name in names:
        torch.testing.assert_close(sent[name] + residuals["residual/" + name], summed[name], rtol=1e-4, atol=1e-5)


def a_restart_loses_nothing(rank: int, size: int) -> None:
    parallel, state = wrapped("topk:0.05+quantize:4")
    train(parallel, rank, range(4))
    weights = {name: tensor.clone() for name, tensor in parallel.module.state_dict().items()}
    assert state is not None
    saved = state.state_dict()
    again, fresh = wrapped("topk:0.05+quantize:4")
    again.module.load_state_dict(weights)
    assert fresh is not None
    fresh.load_state_dict(saved)
    assert all(torch.equal(fresh.state_dict()[key], tensor) for key, tensor in saved.items())
    train(again, rank, range(4, 5))  # the buckets of a first step again
    train(parallel, rank, range(4, 5))
    residual, other = state.state_dict(), fresh.state_dict()
    assert residual.keys() == other.keys()
    assert int(other["step"]) == int(residual["step"]) == 5


def nan_on_one_rank_stops_nobody(rank: int, size: int) -> None:
    parallel, state = wrapped("topk:0.05")
    train(parallel, rank, range(3))
    assert state is not None
    before = state.state_dict()
    images, labels = batch(rank, 3)
    loss = nn.functional.cross_entropy(parallel(images), labels)
    (loss * (float("nan") if rank == 0 else 1.0)).backward()
    assert all(parameter.grad.isnan().all() for parameter in parallel.parameters())
    parallel.zero_grad()
    after = state.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    train(parallel, rank, range(4, 6))
    check_same_everywhere(flat(parallel))
    assert flat(parallel).isfinite().all()


def nan_in_one_bucket_takes_back_the_others(rank: int, size: int) -> None:
    parallel, state = wrapped("topk:0.05")
    train(parallel, rank, range(3))
    assert state is not None
    assert len(state._states) > 1, "there is only one bucket: the test shows nothing"
    before = state.state_dict()
    first = next(parallel.module.parameters())
    handle = first.register_hook(lambda gradient: gradient * (float("nan") if rank == 0 else 1.0))
    images, labels = batch(rank, 3)
    nn.functional.cross_entropy(parallel(images), labels).backward()
    handle.remove()
    assert first.grad.isnan().all()
    assert not list(parallel.parameters())[-1].grad.isnan().any()
    parallel.zero_grad()
    after = copy.deepcopy(state).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    train(parallel, rank, range(4, 5))  # takes it back itself
    again, other = wrapped("topk:0.05")
    assert other is not None
    train(again, rank, range(3))
    train(again, rank, range(4, 5))
    assert torch.equal(flat(parallel), flat(again))
    assert all(torch.equal(other.state_dict()[key], tensor) for key, tensor in state.state_dict().items())


def a_residual_follows_the_scale_of_the_loss(rank: int, size: int) -> None:
    """Powers of two are exact: scaled gradients, rescaled residuals, the same training."""
    plain, _ = wrapped("topk:0.05")
    scaled, state = wrapped("topk:0.05")
    assert state is not None
    train(plain, rank, range(6))
    optimizer, scale = torch.optim.SGD(scaled.parameters(), lr=0.1), 1024.0
    for step in range(6):
        images, labels = batch(rank, step)
        optimizer.zero_grad()
        (scale * nn.functional.cross_entropy(scaled(images), labels)).backward()
        for parameter in scaled.parameters():
            parameter.grad /= scale
        optimizer.step()
        state.rescale(0.25)
        scale /= 4
    assert torch.equal(flat(plain), flat(scaled))


def a_mean_beyond_float16_stops_nobody(rank: int, size: int) -> None:
    """Residuals are float32: what float16 cannot hold any more stays in them, and the step is skipped."""
    inner = nn.Linear(4, 4, bias=False).half()
    parallel = DistributedDataParallel(inner)
    state = fs.DDPState(parallel, "topk:0.5")
    parallel.register_comm_hook(state, fs.ddp_hook)
    state.load_state_dict({"residual/weight": torch.full((4, 4), 65000.0), "step": torch.tensor(1)})
    parallel(torch.full((1, 4), 3000.0, dtype=torch.float16)).sum().backward()
    assert parallel.module.weight.grad.isnan().all()
    residual = state.state_dict()["residual/weight"]
    assert torch.equal(residual, torch.full((4, 4), 65000.0))


def a_lost_rank_is_an_error(rank: int, size: int) -> None:
    parallel, state = wrapped("topk:0.05")
    train(parallel, rank, range(3))
    assert state is not None
    if rank == 1:
        print("fine", flush=True)
        os._exit(0)  # as if it had been killed
    before = state.state_dict()
    images, labels = batch(rank, 3)
    with pytest.raises(RuntimeError, match=r"(?i)connection|peer|reset"):
        nn.functional.cross_entropy(parallel(images), labels).backward()
    after = state.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    print("fine", flush=True)
    os._exit(0)  # with half of the group gone nothing ends in good order


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.expert = nn.Linear(20, 8), nn.Linear(8, 8)

    def forward(self, images: Tensor, asked: bool) -> Tensor:
        features = self.shared(images)
        return self.expert(features) if asked else features


def what_no_rank_used_keeps_its_residual(rank: int, size: int) -> None:
    torch.manual_seed(0)
    parallel = DistributedDataParallel(Experts(), find_unused_parameters=True)
    state = fs.DDPState(parallel, "topk:0.7")  # so much that a residual that is not held back is sent
    parallel.register_comm_hook(state, fs.ddp_hook)
    summed, received = dict[str, Tensor](), dict[str, Tensor]()
    for step in range(5):
        parallel.zero_grad()
        images, _ = batch(rank, step)
        with parallel.no_sync():  # what this rank has to send
            parallel(images, asked=step in (0, 3)).square().mean().backward()
        for name, parameter in parallel.module.named_parameters():
            if parameter.grad is not None:
                summed[name] = summed.get(name, torch.zeros(())) + parameter.grad.double()
        parallel.zero_grad()
        parallel(images, asked=step in (0, 3)).square().mean().backward()
        for name, parameter in parallel.module.named_parameters():
            if parameter.grad is not None:
                received[name] = received.get(name, torch.zeros(())) + parameter.grad.double()
    for name, residual in ((name, state.state_dict()["residual/" + name].double()) for name in summed):
        local = summed[name] - residual  # what this rank sent
        dist.all_reduce(local)
        torch.testing.assert_close(received[name], local / size, rtol=1e-4, atol=1e-7)


SCENARIOS = {
    function.__name__: function
    for function in (
        none_is_the_plain_mean,
        compressed_training_converges,
        nothing_is_lost,
        a_restart_loses_nothing,
        nan_on_one_rank_stops_nobody,
        nan_in_one_bucket_takes_back_the_others,
        a_residual_follows_the_scale_of_the_loss,
        a_mean_beyond_float16_stops_nobody,
        a_lost_rank_is_an_error,
        what_no_rank_used_keeps_its_residual,
    )
}

if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.dump_traceback_later(100)
    torch.set_num_threads(1)
    scenario, rank, size, store = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    SCENARIOS[scenario](rank, size)
    dist.barrier()
    # DDP modules lie in reference cycles and hold the process group. Without them it ends its threads here; else one of
    # them may still let go of a tensor while the interpreter shuts down, which aborts the process.
    gc.collect()
    dist.destroy_process_group()
    threads = [path.joinpath("comm").read_text().strip() for path in Path("/proc/self/task").glob("*")]
    assert not [name for name in threads if "gloo" in name], threads
    print("fine")
