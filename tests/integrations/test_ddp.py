"""The DDP hook, on real gloo processes; ddp_worker.py is what each of them runs."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fedsynsam as fs

WORKER = Path(__file__).with_name("ddp_worker.py")

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


@pytest.mark.parametrize(
    ("scenario", "size"),
    [
        ("none_is_the_plain_mean", 3),
        ("compressed_training_converges", 2),
        ("nothing_is_lost", 2),
        ("a_restart_loses_nothing", 2),
        ("nan_on_one_rank_stops_nobody", 4),
        ("nan_in_one_bucket_takes_back_the_others", 2),
        ("a_residual_follows_the_scale_of_the_loss", 2),
        ("a_mean_beyond_float16_stops_nobody", 2),
        ("a_lost_rank_is_an_error", 2),
        ("what_no_rank_used_keeps_its_residual", 2),
    ],
)
def test_ranks(scenario: str, size: int, tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), scenario]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        for process in ranks:
            process.wait(timeout=120)  # their few lines fit into the pipe
    except subprocess.TimeoutExpired:
        pass  # what they have printed is told below
    finally:
        for process in ranks:
            process.kill()
    outputs = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * size, "\n".join(outputs)
    assert all("fine" in output for output in outputs)


def test_state_belongs_to_its_model() -> None:
    state = fs.DDPState(nn.Linear(3, 2), "topk:0.5")
    with pytest.raises(fs.ArgumentError, match="another model"):
        state.name_of(torch.zeros(2))
    with pytest.raises(fs.StateError, match="lacks 'step'"):
        state.load_state_dict({})
    with pytest.raises(fs.StateError, match="'residual/other'"):
        state.load_state_dict({"residual/other": torch.zeros(2), "step": torch.tensor(0)})
    with pytest.raises(fs.StateError, match=r"'residual/weight' has the shape \[2\]"):
        state.load_state_dict({"residual/weight": torch.zeros(2), "step": torch.tensor(0)})
    good = {"residual/weight": torch.ones(2, 3), "step": torch.tensor(4)}
    state.load_state_dict(good)
    for key, value, words in (
        ("residual/weight", torch.ones(2, 3, dtype=torch.float16), "must be a float32 tensor"),
        ("residual/weight", torch.full((2, 3), torch.nan), "holds NaN or infinity"),
        ("step", torch.tensor(-5), "'step' is -5"),
    ):
        with pytest.raises(fs.StateError, match=words):
            state.load_state_dict(good | {key: value})
    with pytest.raises(fs.StateError, match="quantize:4 keeps no residual"):
        fs.DDPState(nn.Linear(3, 2), "quantize:4").load_state_dict(good)
    for factor in (0.0, float("nan"), float("inf")):
        with pytest.raises(fs.ArgumentError, match="expected a finite number above 0"):
            state.rescale(factor)
    state.state_dict()["residual/weight"].zero_()  # a copy
    assert torch.equal(state.state_dict()["residual/weight"], good["residual/weight"])


def test_a_step_that_broke_off_takes_back_no_other() -> None:
    state = fs.DDPState(nn.Linear(4, 4), "topk:0.25")
    weight, bias = {"weight": torch.ones(4, 4)}, {"bias": torch.arange(4.0)}
    for bucket in (weight, bias):
        state.compress(bucket, seed=0)
    before = state.state_dict()
    state.settle()  # the next step begins, and breaks off after its first bucket
    state.compress(weight, seed=0)
    state.spoil()
    after = state.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_gradient_of_zeros_leaves_the_residual() -> None:
    state = fs.DDPState(nn.Linear(4, 4), "topk:0.25")
    state.compress({"weight": torch.full((4, 4), 9.0), "bias": torch.arange(4.0)}, seed=0)
    before = state.state_dict()
    little = 0.5 - before["residual/weight"]  # less than what is left of the bias, together with its residual
    payload = state.compress({"weight": little, "bias": torch.zeros(4)}, seed=0)
    after, sent = state.state_dict(), payload.decompress()
    assert before["residual/bias"].any()
    assert torch.equal(after["residual/bias"], before["residual/bias"])
    assert not sent["bias"].any()
    assert torch.equal(sent["weight"] + after["residual/weight"], torch.full((4, 4), 0.5))


def test_a_copied_state_belongs_to_the_copied_model() -> None:
    model = nn.Linear(3, 2)
    state = fs.DDPState(model, "topk:0.5")
    for other, copied in (copy.deepcopy((model, state)), pickle.loads(pickle.dumps((model, state)))):
        assert copied.name_of(other.bias) == "bias"
        with pytest.raises(fs.ArgumentError, match="another model"):
            copied.name_of(model.bias)
    state.group = lock = threading.Lock()  # can be copied no more than a process group
    assert copy.deepcopy((model, state))[1].group is lock
