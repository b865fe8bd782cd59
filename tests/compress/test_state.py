"""The state: keyed by name, checked on load, and enough to go on after a restart as if nothing had happened."""

import pytest
import torch
from safetensors.torch import load, save

import fedsynsam as fs

SPECS = ["none", "topk:0.1", "chunktopk:0.1[chunk=64]", "quantize:4", "quantize:8[residual=true]",
         "topk:0.1+quantize:4"]  # fmt: skip


def make_update(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(20, 11, generator=generator),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.zeros(0),
        "b": torch.randn(20, generator=generator),
    }


@pytest.mark.parametrize("spec", SPECS)
def test_a_restart_loses_nothing(spec):
    compressor = fs.compressor(spec)
    updates = [make_update(seed) for seed in range(6)]
    state = compressor.init(updates[0])
    blobs, saved = [], b""
    for round_, update in enumerate(updates):
        if round_ == 3:
            saved = save(state.state_dict())
        payload, state = compressor.compress(update, state, seed=4)
        blobs.append(payload.encode())
    restored = fs.compressor(spec).init(make_update(99)).load_state_dict(load(saved))
    assert restored.step == 3
    for update, blob in zip(updates[3:], blobs[3:], strict=True):
        payload, restored = compressor.compress(update, restored, seed=4)
        assert payload.encode() == blob


def test_keys_and_shapes():
    update = make_update(0)
    compressor = fs.TopK(0.1)
    _, state = compressor.compress(update, compressor.init(update), seed=0)
    tensors = state.state_dict()
    assert set(tensors) == {"step", "residual/w", "residual/scalar", "residual/empty", "residual/b"}
    for name, tensor in update.items():
        assert tensors[f"residual/{name}"].shape == tensor.shape
        assert tensors[f"residual/{name}"].dtype == torch.float32
    assert tensors["step"].dtype == torch.int64
    assert int(tensors["step"]) == 1
    assert set(fs.Quantize(4).init(update).state_dict()) == {"step"}
    assert set(compressor.init(torch.ones(3)).state_dict()) == {"step", "residual/"}


def test_the_order_of_a_saved_state_does_not_matter():
    update = make_update(1)
    compressor = fs.TopK(0.1)
    _, state = compressor.compress(update, compressor.init(update), seed=0)
    turned = dict(reversed(state.state_dict().items()))
    assert torch.equal(compressor.init(update).load_state_dict(turned).residual, state.residual)


def test_a_state_keeps_no_hold_on_what_it_was_loaded_from():
    update = torch.randn(50)
    compressor = fs.TopK(0.1)
    _, state = compressor.compress(update, compressor.init(update), seed=0)
    saved = state.state_dict()
    loaded = compressor.init(update).load_state_dict(saved)
    saved["residual/"].fill_(3)
    assert torch.equal(loaded.residual, state.residual)


def test_load_refuses_what_does_not_fit():
    update = make_update(2)
    compressor = fs.TopK(0.1)
    state = compressor.init(update)
    good = state.state_dict()
    nan = good["residual/b"].clone()
    nan[1] = float("nan")
    for changes, message in (
        ({"residual/w": None}, "lacks 'residual/w'"),
        ({"step": None}, "lacks 'step'"),
        ({"residual/v": torch.ones(1)}, "holds 'residual/v'"),
        ({"residual/w": torch.ones(11, 20)}, r"'residual/w' has the shape \[11, 20\], but tensor 'w' has \[20, 11\]"),
        ({"residual/w": torch.ones(20, 11, dtype=torch.float16)}, "must be a float32 tensor, not torch.float16"),
        ({"residual/b": [0.0] * 20}, "must be a float32 tensor, not list"),
        ({"residual/b": nan}, "holds NaN"),
        ({"step": torch.tensor(-1)}, "'step' is -1"),
        ({"step": torch.tensor(1.0)}, "one whole number"),
        ({"step": 3}, "one whole number"),
    ):
        tensors = {key: tensor for key, tensor in {**good, **changes}.items() if tensor is not None}
        with pytest.raises(fs.StateError, match=message):
            state.load_state_dict(tensors)
        assert state.step == 0
        assert not state.residual.any()
    with pytest.raises(fs.StateError, match="a dict of tensors, as state_dict gives it, not a NoneType"):
        state.load_state_dict(None)


def test_a_state_is_saved_under_any_default_device():
    compressor = fs.TopK(0.1)
    _, state = compressor.compress(torch.randn(50), compressor.init(torch.zeros(50)), seed=0)
    with torch.device("meta"):
        saved = state.state_dict()
    assert compressor.init(torch.zeros(50)).load_state_dict(saved).step == 1


def test_compress_refuses_a_state_of_something_else():
    update = make_update(3)
    compressor = fs.TopK(0.1)
    state = compressor.init(update)
    for other, message in (
        ({**update, "b": torch.ones(21)}, r"tensor 'b' has the shape \[21\], expected \[20\]"),
        ({name: update[name] for name in ("w", "scalar", "empty")}, "'b' missing"),
        ({**update, "c": torch.ones(1)}, "'c' not expected"),
        (dict(reversed(update.items())), "another order"),
        (update["w"], "missing"),
    ):
        with pytest.raises(fs.StateError, match=message):
            compressor.compress(other, state, seed=0)
    with pytest.raises(fs.StateError, match="has a residual, but the compressor keeps none"):
        fs.Quantize(4).compress(update, state, seed=0)
    with pytest.raises(fs.StateError, match="has no residual, but the compressor keeps one"):
        compressor.compress(update, fs.Quantize(4).init(update), seed=0)
    with pytest.raises(fs.StateError, match="not be a dict"):
        compressor.compress(update, state.state_dict(), seed=0)
    with pytest.raises(fs.StateError, match="lies on meta, the state's residual on cpu"):
        compressor.compress({name: tensor.to("meta") for name, tensor in update.items()}, state, seed=0)
