"""The DDP hook, on real gloo processes; ddp_worker.py is what each of them runs."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
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
        outputs = [process.communicate(timeout=120)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
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


def test_a_copied_state_belongs_to_the_copied_model() -> None:
    model = nn.Linear(3, 2)
    state = fs.DDPState(model, "topk:0.5")
    for other, copied in (copy.deepcopy((model, state)), pickle.loads(pickle.dumps((model, state)))):
        assert copied.name_of(other.bias) == "bias"
        with pytest.raises(fs.ArgumentError, match="another model"):
            copied.name_of(model.bias)
