"""fs.Uplink is compress and encode with a memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedsynsam as fs


def updates(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"weight": torch.randn(30, 10, generator=generator), "bias": torch.randn(30, generator=generator)}
            for _ in range(count)]  # fmt: skip


@pytest.mark.parametrize("spec", ["topk:0.1", "topk:0.1+quantize:4", "quantize:2", "none"])
def test_the_bytes_are_those_of_the_functional_form(spec: str) -> None:
    uplink = fs.Uplink(spec, like=nn.Linear(10, 30), seed=5)
    compressor = fs.compressor(spec)
    state = compressor.init(updates(1)[0])
    for update in updates(4):
        payload, state = compressor.compress(update, state, seed=fs.row_seed(5, 0, 0))
        assert uplink.encode(update) == payload.encode()
    assert uplink.state_dict().keys() == state.state_dict().keys()


@pytest.mark.parametrize("wrong", [nn.Linear(10, 30), fs.Manifest.of(updates(1)[0]), [1.0], None])
def test_what_is_no_update_is_refused(wrong: object) -> None:
    """A module and a manifest have the shapes of an update, but are none."""
    uplink = fs.Uplink("topk:0.1", like=nn.Linear(10, 30), seed=5)
    with pytest.raises(fs.ArgumentError, match="an update must be a tensor or a dict of tensors, not "):
        uplink.encode(wrong)  # type: ignore[arg-type]


def test_a_restart_loses_nothing() -> None:
    first, second, third = updates(3)
    uplink, other = (fs.Uplink("topk:0.1+quantize:4", like=first, seed=1) for _ in range(2))
    uplink.encode(first)
    uplink.encode(second)
    other.load_state_dict(uplink.state_dict())
    assert other.encode(third) == uplink.encode(third)


def test_senders_draw_their_own_roundings() -> None:
    update = updates(1)[0]
    blobs = {fs.Uplink("quantize:2", like=update, seed=seed).encode(update) for seed in range(4)}
    assert len(blobs) == 4


def test_what_cannot_be_sent_changes_nothing() -> None:
    first, second = updates(2)
    uplink = fs.Uplink("topk:0.1", like=first)
    uplink.encode(first)
    before = uplink.state_dict()
    with pytest.raises(fs.NonFiniteError, match="bias"):
        uplink.encode({**second, "bias": torch.full((30,), torch.inf)})
    assert all(torch.equal(before[name], tensor) for name, tensor in uplink.state_dict().items())
    with pytest.raises(fs.StateError, match="lacks"):
        uplink.load_state_dict({})


def test_without_bytes_nothing_counts_as_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    (update,) = updates(1)
    uplink = fs.Uplink("topk:0.1", like=update)

    def fails(_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(fs.Payload, "encode", fails)
    with pytest.raises(MemoryError):
        uplink.encode(update)
    assert uplink.state_dict()["step"] == 0
