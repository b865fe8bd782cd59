"""Hostile bytes: real payloads with bits flipped, cut, extended and spliced. 10,000 cases, all specs, seeded.

Only two outcomes are legal: PayloadError, or a payload that encodes to the very bytes it was decoded from
(and decompresses to finite numbers).
"""

import random
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
    return {"a": torch.randn(9, 7, generator=generator), "z": torch.zeros(40), "b": torch.randn(50, generator=generator)}


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


def test_a_header_of_huge_claims_allocates_nothing():
    blob = real_payloads("topk:0.1")[0]
    for claim in (b"a:9x7,z:40,b:50", b"a:2147483647"):
        forged = blob.replace(b"a:9x7,z:40,b:50", claim.ljust(15, b"0") if claim.startswith(b"a:2") else claim)
        tracemalloc.start()
        try:
            fs.Payload.inspect(forged)
        except fs.PayloadError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000
