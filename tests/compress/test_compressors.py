"""What compress promises: nothing is lost, nothing is aliased, and bad input leaves the state alone."""

import gc
import io
import pickle
import weakref

import numpy as np
import pytest
import torch

import fedsynsam as fs

SPECS = [
    "none",
    "topk:0.01",
    "topk:1",
    "topk:0.2[residual=false]",
    "chunktopk:0.05[chunk=100]",
    "quantize:1",
    "quantize:2[norm=l2]",
    "quantize:4[bucket=64,residual=true]",
    "quantize:8",
    "topk:0.1+quantize:4",
    "topk:0.1+quantize:1[bucket=8]",
    "chunktopk:0.1[chunk=64]+quantize:2[norm=l2]",
]
KEEPING = [spec for spec in SPECS if fs.compressor(spec).residual]


def make_update(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(8, 3, 5, 5, generator=generator) * scale,
        "scalar": torch.randn((), generator=generator) * scale,
        "empty": torch.zeros(4, 0),
        "fc.bias": torch.randn(37, generator=generator) * scale,
    }


def flat(update):
    return torch.cat([tensor.reshape(-1).float() for tensor in update.values()])


@pytest.mark.parametrize("spec", SPECS)
def test_structure_and_bytes(spec):
    update = make_update(0)
    compressor = fs.compressor(spec)
    state = compressor.init(update)
    for seed in range(3):
        payload, state = compressor.compress(update, state, seed=seed)
        approximation = payload.decompress()
        assert list(approximation) == list(update)
        for name, tensor in update.items():
            assert approximation[name].shape == tensor.shape
            assert approximation[name].dtype == torch.float32
        blob = payload.encode()
        assert payload.wire_bytes == len(blob)
        decoded = fs.Payload.decode(blob, like=update, spec=compressor)
        assert decoded.encode() == blob
        assert decoded.spec == str(compressor)
        assert torch.equal(flat(decoded.decompress()), flat(approximation))
    assert state.step == 3


@pytest.mark.parametrize("spec", KEEPING)
def test_sent_and_left_add_up_to_what_there_was(spec):
    # residual = a − x̂, rounded once, bit for bit: float64 holds the difference of two float32 well enough for that
    compressor = fs.compressor(spec)
    state = compressor.init(make_update(0))
    for step in range(5):
        update = make_update(step, scale=10.0 ** (step - 2))
        a = flat(update) + state.residual
        payload, state = compressor.compress(update, state, seed=11)
        sent = flat(payload.decompress())
        expected = (a.double() - sent.double()).float()
        assert torch.equal(state.residual.view(torch.int32), expected.view(torch.int32))


def test_what_is_not_sent_is_kept_exactly_and_what_is_sent_is_gone():
    compressor = fs.TopK(0.1)
    update = make_update(1)
    payload, state = compressor.compress(update, compressor.init(update), seed=0)
    sent = flat(payload.decompress())
    assert torch.equal(sent + state.residual, flat(update))
    assert int((sent != 0).sum()) == payload.num_sent == 64
    assert not (sent * state.residual).any()


@pytest.mark.parametrize("spec", SPECS)
def test_compress_is_a_pure_function(spec):
    compressor = fs.compressor(spec)
    update = make_update(2)
    _, state = compressor.compress(update, compressor.init(update), seed=5)
    before = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    update_before = {name: tensor.clone() for name, tensor in update.items()}
    first, one = compressor.compress(update, state, seed=6)
    blob = first.encode()
    second, other = compressor.compress(update, state, seed=6)
    assert blob == second.encode()
    for key, tensor in state.state_dict().items():
        assert torch.equal(tensor, before[key])
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])
    for name in update:
        assert torch.equal(update[name], update_before[name])
        update[name].fill_(7)  # neither payload nor state may follow the update
    assert first.encode() == blob
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])


@pytest.mark.parametrize("spec", ["quantize:2", "topk:0.5+quantize:2"])
def test_draws_differ_by_seed_and_by_step(spec):
    update = make_update(3)
    compressor = fs.compressor(spec.replace("topk:0.5", "topk:0.5[residual=false]"))
    state = compressor.init(update)
    first, later = compressor.compress(update, state, seed=1)
    assert first.encode() != compressor.compress(update, state, seed=2)[0].encode()
    assert first.encode() != compressor.compress(update, later, seed=1)[0].encode()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "update", [torch.zeros(0), torch.tensor(2.5), torch.tensor([-3.0]), {}, {"a": torch.ones(0, 3)}]
)
def test_no_and_one_element(spec, update):
    compressor = fs.compressor(spec)
    payload, state = compressor.compress(update, compressor.init(update), seed=0)
    decoded = fs.Payload.decode(payload.encode(), like=update)
    assert decoded.encode() == payload.encode()
    result = decoded.decompress()
    assert isinstance(result, torch.Tensor) == isinstance(update, torch.Tensor)
    if isinstance(update, torch.Tensor):
        assert result.shape == update.shape
        assert torch.equal(result, update)  # a single value is its bucket's scale (or ± it, with the sign kept)
    else:
        assert {name: tensor.shape for name, tensor in result.items()} == {n: t.shape for n, t in update.items()}
    compressor.compress(update, state, seed=0)


@pytest.mark.parametrize("spec", ["none", "topk:0.1", "chunktopk:0.1", "quantize:4", "topk:0.1+quantize:4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32(spec, dtype):
    update = {name: tensor.to(dtype) for name, tensor in make_update(4).items()}
    as_float = {name: tensor.float() for name, tensor in update.items()}
    mixed = {**update, "fc.bias": as_float["fc.bias"]}
    compressor = fs.compressor(spec)
    blobs = {compressor.compress(u, compressor.init(u), seed=0)[0].encode() for u in (update, as_float, mixed)}
    assert len(blobs) == 1


@pytest.mark.parametrize("spec", SPECS)
def test_strides_and_gradients_do_not_matter(spec):
    base = torch.randn(40, 30, generator=torch.Generator().manual_seed(5))
    views = {"t": base.T, "s": base[::3, 1::2], "e": torch.tensor(3.0).expand(50)}
    plain = {name: tensor.contiguous() for name, tensor in views.items()}
    views["t"] = torch.nn.Parameter(base).T
    compressor = fs.compressor(spec)
    payload, _ = compressor.compress(views, compressor.init(views), seed=0)
    assert payload.encode() == compressor.compress(plain, compressor.init(plain), seed=0)[0].encode()
    assert not payload.decompress()["t"].requires_grad


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_updates_name_the_tensor(spec, value):
    compressor = fs.compressor(spec)
    update = make_update(6)
    _, state = compressor.compress(update, compressor.init(update), seed=0)
    before = state.state_dict()
    bad = {**update, "fc.bias": update["fc.bias"].clone()}
    bad["fc.bias"][3] = value
    with pytest.raises(
        fs.NonFiniteError, match=r"tensor 'fc.bias' of the update holds NaN or infinity in float32; nothing"
    ):
        compressor.compress(bad, state, seed=0)
    with pytest.raises(fs.NonFiniteError, match="the tensor of the update"):
        compressor.compress(bad["fc.bias"], compressor.init(bad["fc.bias"]), seed=0)
    for key, tensor in state.state_dict().items():
        assert torch.equal(tensor, before[key])
    compressor.compress(update, state, seed=0)


def test_overflow_with_the_residual_names_the_tensor():
    compressor = fs.TopK(0.5)
    update = {"a": torch.ones(3), "b": torch.tensor([3e38, 2.9e38, 1.0])}
    _, state = compressor.compress(update, compressor.init(update), seed=0)
    with pytest.raises(fs.NonFiniteError, match="tensor 'a' of the update overflows float32 with its residual"):
        compressor.compress({"a": torch.full((3,), 3e38), "b": update["b"]}, _with_residual(state, 2e38), seed=0)
    with pytest.raises(fs.NonFiniteError, match="tensor 'b' of the update holds NaN"):
        compressor.compress({"a": torch.ones(3), "b": torch.tensor([1e39, 0, 0], dtype=torch.float64)}, state, seed=0)


def _with_residual(state, value):
    tensors = {k: torch.full_like(t, value) if k.startswith("residual/") else t for k, t in state.state_dict().items()}
    return fs.State(state.manifest, state.residual.clone()).load_state_dict(tensors)


def test_largest_floats_stay_finite():
    update = {"a": torch.tensor([3.4028235e38, -3.4028235e38, 1e38, 0.0] * 4)}
    for spec in ("quantize:8", "quantize:4[norm=l2]", "quantize:1[residual=true]", "topk:0.5+quantize:8"):
        compressor = fs.compressor(spec)
        payload, state = compressor.compress(update, compressor.init(update), seed=0)
        decoded = fs.Payload.decode(payload.encode(), like=update)
        assert torch.isfinite(decoded.decompress()["a"]).all()
        assert state.residual is None or torch.isfinite(state.residual).all()


def test_wrong_arguments():
    compressor = fs.TopK(0.1)
    update = make_update(0)
    state = compressor.init(update)
    for bad, message in (
        ([torch.ones(3)], "must be a tensor or a dict"),
        ({"a": torch.ones(3, dtype=torch.int32)}, "tensor 'a' of the update is torch.int32; only floating-point"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "torch.complex64"),
        ({"a": [1.0]}, "tensor 'a' of the update is a list"),
        ({"": torch.ones(3)}, "non-empty strings"),
        ({3: torch.ones(3)}, "non-empty strings"),
        ({"a": torch.eye(3).to_sparse()}, "make it dense"),
        ({"a": torch.ones(3), "b": torch.ones(3, device="meta")}, "several devices: cpu, meta"),
        ({"\ud800": torch.ones(3)}, "UTF-8"),
    ):
        with pytest.raises(fs.ArgumentError, match=message):
            compressor.init(bad)
    for seed in (None, 1.0, True, "7"):
        with pytest.raises(fs.ArgumentError, match="seed"):
            compressor.compress(update, state, seed=seed)
    with pytest.raises(fs.ArgumentError, match="seed"):
        compressor.compress(update, state, seed=2**70)
    with pytest.raises(TypeError):
        compressor.compress(update, state)  # no seed, no compression: draws are never left to chance


def test_quantize_without_residual_is_unbiased_and_with_one_bit_no_contraction():
    update = torch.randn(512, generator=torch.Generator().manual_seed(8))
    compressor = fs.Quantize(1)
    state = compressor.init(update)
    total = np.zeros(512)
    repeats = 400
    for _ in range(repeats):
        payload, state = compressor.compress(update, state, seed=3)
        total += payload.decompress().numpy()
    scale = float(update.abs().max())
    # each draw has a variance of at most scale²; the mean of 512 errors of 400 draws: 6 sigma
    bound = 6 * scale / np.sqrt(repeats * 512)
    assert abs((total / repeats - update.numpy()).mean()) < bound
    error = float((payload.decompress() - update).norm() / update.norm())
    assert error > 1  # why error feedback is off by default
    assert state.residual is None


@pytest.mark.parametrize("spec", SPECS)
def test_rows_are_compressed_as_one_by_one(spec: str) -> None:
    compressor = fs.compressor(spec)
    updates = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    states = [compressor.init(updates[0]) for _ in range(5)]
    alone = list(states)
    for number in range(3):
        seeds = [10 * number + row for row in range(5)]
        together = compressor.compress_rows(updates, states, seeds=seeds)
        for row in range(5):
            payload, alone[row] = compressor.compress(updates[row], alone[row], seed=seeds[row])
            assert together[row][0].encode() == payload.encode()
        states = [state for _, state in together]
        for one, other in zip(states, alone, strict=True):
            assert one.step == other.step
            assert (one.residual is None) == (other.residual is None)
            if one.residual is not None:
                assert torch.equal(one.residual, other.residual)


def test_a_row_that_is_not_finite_is_named() -> None:
    compressor = fs.compressor("topk:0.1")
    updates = torch.ones(3, 20)
    updates[1, 7] = torch.nan
    states = [compressor.init(updates[0]) for _ in range(3)]
    with pytest.raises(fs.NonFiniteError, match=r"row 1: .*holds NaN or infinity") as caught:
        compressor.compress_rows(updates, states, seeds=[1, 2, 3])
    assert caught.value.row == 1
    assert all(not state.residual.any() for state in states)


def test_rows_need_a_state_and_a_seed_each() -> None:
    compressor = fs.compressor("topk:0.1")
    states = [compressor.init(torch.ones(20))] * 3
    with pytest.raises(fs.ArgumentError, match=r"a state and a seed for each row; it is \[3, 20\], with 2 states"):
        compressor.compress_rows(torch.ones(3, 20), states[:2], seeds=[1, 2, 3])
    with pytest.raises(fs.ArgumentError, match="must be a matrix"):
        compressor.compress_rows(torch.ones(20), states, seeds=[1, 2, 3])
    with pytest.raises(fs.StateError, match="does not fit"):
        compressor.compress_rows(torch.ones(3, 21), states, seeds=[1, 2, 3])
    assert compressor.compress_rows(torch.ones(0, 20), [], seeds=[]) == []
    rows = compressor.compress_rows(torch.ones(3, 20), iter(states), seeds=iter([1, 2, 3]))
    assert [state.step for _, state in rows] == [1, 1, 1]


def test_a_refused_update_is_let_go_of_at_once() -> None:
    compressor = fs.compressor("topk:0.1")
    state = compressor.init(torch.zeros(20))

    def refused() -> weakref.ref[torch.Tensor]:
        update = torch.full((20,), torch.nan)
        with pytest.raises(fs.NonFiniteError):
            compressor.compress(update, state, seed=0)
        return weakref.ref(update)

    gc.disable()  # so that nothing but counting references frees it
    try:
        assert refused()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["plain", "bfloat16", "float64", "requires_grad", "negative"])
def test_rows_of_every_kind_are_taken_like_single_updates(spec: str, kind: str) -> None:
    rows = torch.randn(2, 300)
    if kind == "negative":  # a view whose values lie in memory with the other sign
        rows = torch.complex(rows, rows).conj().imag
        assert rows.is_neg()
    else:
        rows = rows.requires_grad_() if kind == "requires_grad" else rows.to(getattr(torch, kind, torch.float32))
    kinds = fs.compressor(spec)
    states = [kinds.init(row) for row in rows]
    done = kinds.compress_rows(rows, states, seeds=[1, 2])
    alone = [kinds.compress(row, state, seed=seed) for row, state, seed in zip(rows, states, [1, 2], strict=True)]
    with torch.no_grad():
        rows.zero_()  # a payload does not follow its update's changes
    for (payload, state), (other, other_state) in zip(done, alone, strict=True):
        assert payload.encode() == other.encode()
        assert (state.residual is None) == (other_state.residual is None)
        if state.residual is not None:
            assert torch.equal(state.residual, other_state.residual)


@pytest.mark.parametrize("spec", ["none", "topk:0.1", "quantize:8[residual=true]"])
def test_what_is_saved_of_one_sender_holds_nothing_of_the_others(spec: str) -> None:
    kinds = fs.compressor(spec)
    rows = torch.cat([torch.full((1, 100), 1.0), torch.full((40, 100), 7777.0)])
    done = kinds.compress_rows(rows, [kinds.init(row) for row in rows], seeds=range(41))
    for item in done[0]:
        text, saved = pickle.dumps(item), io.BytesIO()
        torch.save(item, saved)
        assert len(text) < 5000
        theirs = torch.tensor(7777.0).numpy().tobytes()
        assert theirs not in text
        assert theirs not in saved.getvalue()
    payload, state = pickle.loads(pickle.dumps(done[0]))
    assert payload.encode() == done[0][0].encode()
    assert kinds.compress(rows[0], state, seed=3)[0].encode() == kinds.compress(rows[0], done[0][1], seed=3)[0].encode()


def test_no_tensors_where_the_default_dtype_is_another() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        kinds = fs.compressor("topk:0.1+quantize:4")
        assert kinds.compress({}, kinds.init({}), seed=0)[0].decompress() == {}
    finally:
        torch.set_default_dtype(torch.float32)
