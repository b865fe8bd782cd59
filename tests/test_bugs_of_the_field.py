"""Bugs that compression libraries have shipped. One test each, at the level of compressors and payloads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fedsynsam as fs

SPECS = ["none", "topk:0.1", "chunktopk:0.1", "quantize:1", "quantize:2", "quantize:4", "quantize:8[norm=l2]",
         "topk:0.1+quantize:4", "chunktopk:0.1+quantize:1"]  # fmt: skip
STOCHASTIC = ["quantize:1", "quantize:2", "quantize:4", "topk:0.5+quantize:4"]


def compress(spec, update, seed=0):
    compressor = fs.compressor(spec)
    return compressor.compress(update, compressor.init(update), seed=seed)


def through_the_wire(spec, update, seed=0):
    payload, _ = compress(spec, update, seed)
    return fs.Payload.decode(payload.encode(), like=update).decompress()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", STOCHASTIC)
def test_draws_come_from_the_seed_and_touch_no_global_state(spec):
    update = normal(3000)
    blobs = set()
    for global_seed in range(3):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002  (the global state is what is tested)
        before = torch.get_rng_state()
        blobs.add(compress(spec, update, seed=5)[0].encode())
        assert torch.equal(torch.get_rng_state(), before)
    assert len(blobs) == 1


def test_another_process_at_another_time_draws_the_same():
    script = (
        "import torch, fedsynsam as fs; u = torch.arange(999.0).sin(); c = fs.compressor('quantize:2');"
        "print(c.compress(u, c.init(u), seed=5)[0].encode().hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert bytes.fromhex(out.stdout.strip()) == compress("quantize:2", torch.arange(999.0).sin(), seed=5)[0].encode()


@pytest.mark.parametrize("spec", ["quantize:1", "quantize:2", "quantize:4"])
def test_tensors_do_not_share_their_draws(spec):
    tensor = normal(512)
    result = through_the_wire(spec, {"a": tensor, "b": tensor.clone()})
    assert not torch.equal(result["a"], result["b"])


def test_clients_and_rounds_do_not_share_their_draws():
    seeds = {fs.row_seed(7, round_, client) for round_ in range(30) for client in range(30)}
    assert len(seeds) == 900
    update = normal(512)
    blobs = {compress("quantize:2", update, seed)[0].encode() for seed in list(seeds)[:20]}
    assert len(blobs) == 20


def test_rounding_is_stochastic_unless_told_otherwise():
    # 0.3 of a level between 0 and 1: to nearest it would always be 0
    update = torch.full((512 * 40,), 0.3)
    update[::512] = 1.0
    mean = float(through_the_wire("quantize:2", update)[update != 1].mean())
    assert abs(mean - 0.3) < 6 * (0.21 / (511 * 40)) ** 0.5
    assert not through_the_wire("quantize:2[rounding=nearest]", update)[update != 1].any()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_n_bit_codes_take_n_bits(bits):
    payload, _ = compress(f"quantize:{bits}", normal(512 * 20))
    sizes = {section.name: section.bits_per_value for section in payload.sections()}
    assert sizes["codes"] == bits
    assert sizes["scales"] == 32 / 512
    container = payload.sections()[0].nbytes
    assert len(payload.encode()) == container + 512 * 20 * bits // 8 + 20 * 4


def test_indices_take_far_fewer_than_64_bits():
    payload, _ = compress("topk:0.01", normal(200_000))
    sizes = {section.name: section.bits_per_value for section in payload.sections()}
    assert sizes["indices"] < 1.08 * (np.log2(100) + 1.44)
    assert len(payload.encode()) < 200_000 * 0.01 * 5.3


def test_an_index_cannot_come_twice():
    update = torch.tensor([0, 3.0, 2.0, 0, 0, 0, 0, 0])
    blob = bytearray(compress("topk:0.25", update)[0].encode())
    # indices 1, 2: low bits 01, 10, high bits 11; with the low bits 01, 01 both would be 1
    assert blob[-16:-8] == bytes([0b1001, 0, 0, 0, 0b11, 0, 0, 0])
    blob[-16] = 0b0101
    with pytest.raises(fs.PayloadError, match="not ascending"):
        fs.Payload.decode(blob, like=update)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("update", [torch.zeros(1000), -torch.zeros(1000), torch.full((1000,), 1e-45)])
def test_all_zero_tensors(spec, update):
    compressor = fs.compressor(spec)
    state = compressor.init(update)
    for seed in range(3):
        payload, state = compressor.compress(update, state, seed=seed)
        result = fs.Payload.decode(payload.encode(), like=update).decompress()
        assert torch.isfinite(result).all()
        assert result.abs().max() <= 1e-44
        assert state.residual is None or torch.isfinite(state.residual).all()


@pytest.mark.parametrize("spec", SPECS)
def test_all_negative_and_tiny_tensors_have_the_right_maximum(spec):
    for scale in (1.0, 1e-30, 1e30):
        update = -scale * (1 + torch.arange(1000.0) / 1000)
        result = through_the_wire(spec, update)
        assert result.min() <= -scale  # the largest magnitude is found and sent
        assert result.abs().max() <= (40 if "l2" in spec else 1.001) * 2 * scale


@pytest.mark.parametrize("spec", SPECS)
def test_one_column_tensors_do_not_double(spec):
    sizes = {len(compress(spec, normal(3000).reshape(shape))[0].encode()) for shape in ((3000,), (3000, 1), (1, 3000))}
    assert max(sizes) - min(sizes) <= 8  # two characters of the layout, and the padding of the header


def test_nothing_is_accumulated_in_half_precision():
    # 1 + 2^-11 is no float16; and 4096 clients of 1 would get stuck at 2048
    compressor = fs.TopK(0.5)
    update = torch.tensor([1.0, 2.0**-11], dtype=torch.float16)
    _, state = compressor.compress(update, compressor.init(update), seed=0)
    payload, state = compressor.compress(torch.tensor([0.0, 1.0], dtype=torch.float16), state, seed=0)
    assert payload.decompress().tolist() == [0, 1 + 2.0**-11]
    ones = torch.ones(2, dtype=torch.float16)
    payloads = [fs.Identity().compress(ones, fs.Identity().init(ones), seed=0)[0]] * 4096
    assert fs.aggregate(payloads).tolist() == [1, 1]


def test_the_residual_goes_by_name_and_survives_a_restart():
    compressor = fs.TopK(0.1)
    update = {"a": normal(30), "b": normal(30, seed=1)}
    _, state = compressor.compress(update, compressor.init(update), seed=0)
    saved = dict(sorted(state.state_dict().items(), reverse=True))
    turned = {"b": update["b"], "a": update["a"]}  # a restart that lists the tensors in another order
    restored = compressor.init(turned).load_state_dict(saved).state_dict()
    for name in update:
        assert torch.equal(restored[f"residual/{name}"], state.state_dict()[f"residual/{name}"])


def test_each_client_has_its_own_residual():
    compressor = fs.TopK(0.1)
    updates = [normal(100, seed=seed) for seed in range(2)]
    states = [compressor.init(update) for update in updates]
    for round_ in range(3):
        for client in range(2):
            _, states[client] = compressor.compress(updates[client], states[client], seed=round_)
    alone = compressor.init(updates[0])
    for round_ in range(3):
        _, alone = compressor.compress(updates[0], alone, seed=round_)
    assert torch.equal(alone.residual, states[0].residual)


def test_the_residual_is_taken_after_quantization():
    update = normal(1000)
    payload, state = compress("topk:0.1+quantize:2", update)
    sent = payload.decompress()
    assert torch.equal(state.residual, update - sent)
    assert state.residual[payload.tensors["indices"].long()].any()


def test_a_mean_is_over_clients_not_over_senders():
    updates = torch.eye(4) * 4
    payloads = [compress("topk:0.25", update)[0] for update in updates]
    assert fs.aggregate(payloads).tolist() == [1, 1, 1, 1]


class _CountHostReads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spec", SPECS)
def test_the_host_waits_once_an_update_not_once_a_tensor(spec):
    update = {f"layer{i}": normal(20, 10, seed=i) for i in range(50)}
    compressor = fs.compressor(spec)
    state = compressor.init(update)
    with _CountHostReads() as reads:
        compressor.compress(update, state, seed=0)
    assert reads.count == 1
    rows, states = normal(8, 100, seed=1), [compressor.init(torch.zeros(100))] * 8
    with _CountHostReads() as reads:
        compressor.compress_rows(rows, states, seeds=range(8))
    assert reads.count == 1


def test_offsets_do_not_pass_what_indices_can_hold():
    with pytest.raises(fs.ArgumentError, match="too large for one payload"):
        fs.Manifest((("a", (2**30,)), ("b", (2**30,))))


@pytest.mark.parametrize("spec", ["topk:0.25", "chunktopk:0.25"])
def test_zeros_of_both_signs_tie_by_index(spec):
    for update in (torch.tensor([-0.0, 0.0, -0.0, 0.0]), torch.tensor([0.0, -0.0, 0.0, -0.0])):
        payload, _ = compress(spec, update)
        assert payload.tensors["indices"].tolist() == [0]
    payload, _ = compress(spec.replace("0.25", "0.5"), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert payload.tensors["indices"].tolist() == [0, 1]


def test_remote_lengths_are_not_trusted():
    update = normal(100)
    blob = compress("topk:0.1", update)[0].encode()
    start = 8 + int.from_bytes(blob[:8], "little")
    for length in (0, 2**31, 2**40, 2**63, 2**64 - 1):
        with pytest.raises(fs.PayloadError):
            fs.Payload.decode(length.to_bytes(8, "little") + blob[8:], like=update)
    for claim in (-1, 0, 11, 2**31, 2**62):
        header = json.loads(blob[8:start])
        header["values"]["shape"] = [claim]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with pytest.raises(fs.PayloadError, match="'values' has shape"):
            fs.Payload.decode(len(text).to_bytes(8, "little") + text + blob[start:], like=update)


def test_reported_bytes_are_bytes_that_were_made():
    for spec in SPECS:
        payload, _ = compress(spec, normal(777))
        assert payload.wire_bytes == len(payload.encode())
