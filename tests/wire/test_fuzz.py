"""Hostile bytes: real payloads with bits flipped, cut, extended and spliced. 10,000 cases, all specs, seeded.

Only two outcomes are legal: PayloadError, or a payload that encodes to the very bytes it was decoded from
(and decompresses to finite numbers).
"""

import json
import random
import struct
import tracemalloc

import pytest
import torch

import fedsynsam as fs

SPECS = [
    "none",
    "topk:0.1",
    "topk:1",
    "chunktopk:0.1[chunk=32]",
    "quantize:1[bucket=16]",
    "quantize:2[bucket=16,norm=l2]",
    "quantize:4[bucket=32]",
    "quantize:8[bucket=8]",
    "topk:0.2+quantize:1[bucket=8]",
    "chunktopk:0.2[chunk=50]+quantize:4[bucket=8]",
]
CASES = 1000  # for each spec


def make_update():
    generator = torch.Generator().manual_seed(1)
    sizes = {"a": (9, 7), "z": (40,), "b": (50,)}
    return {name: torch.randn(size, generator=generator) * (name != "z") for name, size in sizes.items()}


def real_payloads(spec):
    compressor, update = fs.compressor(spec), make_update()
    state = compressor.init(update)
    blobs = []
    for seed in range(2):
        payload, state = compressor.compress(update, state, seed=seed)
        blobs.append(payload.encode())
    return blobs


def damaged(blobs, chance):
    """Return a damaged copy of one of the blobs; half of the flips hit the data behind the header."""
    blob = bytearray(chance.choice(blobs))
    start = 8 + int.from_bytes(blob[:8], "little")
    kind = chance.randrange(8)
    if kind <= 3:
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            position = chance.randrange(start if kind % 2 else 0, len(blob)) if len(blob) > start else 0
            blob[position] ^= 1 << chance.randrange(8)
    elif kind == 4:
        del blob[chance.randrange(len(blob)) :]
    elif kind == 5:
        blob += chance.randbytes(chance.randrange(1, 20))
    elif kind == 6:
        position = chance.randrange(len(blob))
        blob[position : position + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
    else:
        other = chance.choice(blobs)
        position = chance.randrange(len(blob))
        blob[position:] = other[position:]
    return bytes(blob)


@pytest.mark.parametrize("spec", SPECS)
def test_damaged_payloads(spec):
    like = make_update()
    blobs = real_payloads(spec)
    chance = random.Random(spec)
    refused = 0
    for _ in range(CASES):
        blob = damaged(blobs, chance)
        try:
            payload = fs.Payload.decode(blob, like=like)
        except fs.PayloadError:
            refused += 1
            with pytest.raises(fs.PayloadError):  # without like= the layout may be another, but never wrong bytes
                _inspect_or_other_layout(blob, like)
        else:
            assert payload.encode() == blob
            assert all(torch.isfinite(tensor).all() for tensor in payload.decompress().values())
            assert fs.Payload.inspect(blob).wire_bytes == len(blob)
    assert refused >= CASES // 4


def _inspect_or_other_layout(blob, like):
    info = fs.Payload.inspect(blob)
    assert info.manifest != fs.Manifest.of(like)
    assert fs.Payload.decode(blob, like=info.manifest).encode() == blob
    raise fs.PayloadError("another layout")


def test_every_single_bit_of_a_payload():
    like = make_update()
    blob = real_payloads("topk:0.2+quantize:1[bucket=8]")[0]
    start = 8 + int.from_bytes(blob[:8], "little")
    for position in range(8 * len(blob)):
        changed = bytearray(blob)
        changed[position // 8] ^= 1 << position % 8
        try:
            payload = fs.Payload.decode(changed, like=like)
        except fs.PayloadError:
            continue
        assert position // 8 >= start  # no bit of the header may change
        assert payload.encode() == changed


def test_every_length_of_a_payload():
    blob = real_payloads("topk:0.1")[0]
    for length in range(len(blob)):
        with pytest.raises(fs.PayloadError):
            fs.Payload.decode(blob[:length], like=make_update())


def test_random_bytes():
    chance = random.Random(0)
    for length in list(range(64)) * 4:
        with pytest.raises(fs.PayloadError):
            fs.Payload.inspect(chance.randbytes(length))


@pytest.mark.parametrize("spec", SPECS)
def test_a_layout_of_huge_claims_allocates_nothing(spec):
    blob = real_payloads(spec)[0]
    for claim in (b"aaaa:2147483647", b"a:9999999,b:9x9", b"a:2147483640,b:"):
        forged = blob.replace(b"a:9x7,z:40,b:50", claim)
        tracemalloc.start()
        with pytest.raises(fs.PayloadError):
            fs.Payload.inspect(forged)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


def test_a_legal_payload_of_a_huge_layout_is_read_in_little_memory():
    # n = 2^31 − 1, k = 2: l = 29; low bits of indices 5 and 2^31 − 2; high bits 0 and 3 + 1
    low = 5 | (2**29 - 2) << 29
    spec, n = "topk:1e-09", 2**31 - 1
    words = [low & 0xFFFFFFFF, low >> 32, 0b10001]
    metadata = {"fedsynsam": "1", "layout": f"w:{n}", "spec": spec}
    indices = {"dtype": "U32", "shape": [3], "data_offsets": [0, 12]}
    values = {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}
    header = json.dumps({"__metadata__": metadata, "indices": indices, "values": values}, separators=(",", ":"))
    header += " " * (-len(header) % 8)
    blob = struct.pack("<Q", len(header)) + header.encode() + struct.pack("<3I2f", *words, 1.0, -2.0)
    info = fs.Payload.inspect(blob)
    assert (info.num_elements, info.num_sent, info.wire_bytes) == (n, 2, len(blob))
    payload = fs.Payload.decode(blob, like=info.manifest)
    assert payload.tensors["indices"].tolist() == [5, n - 1]
    assert payload.encode() == blob
