"""A decoder written from docs/wire-format.md alone, with numpy, json and struct, must agree with the library."""

import json
import math
import re
import struct
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch

import fedsynsam as fs

SPECS = [
    "none",
    "topk:0.01",
    "topk:1",
    "topk:0.3[residual=false]",
    "chunktopk:0.05",
    "chunktopk:0.1[chunk=100,residual=false]",
    "quantize:1",
    "quantize:2[norm=l2]",
    "quantize:4[bucket=64,rounding=nearest,residual=true]",
    "quantize:8",
    "topk:0.02+quantize:1[bucket=8]",
    "topk:0.02+quantize:4",
    "topk:0.5+quantize:8[bucket=128]",
    "chunktopk:0.07[chunk=1000]+quantize:2[bucket=32]",
]


def read_options(stage):
    options = re.search(r"\[(.*)\]", stage)
    return dict(option.split("=") for option in options[1].split(",")) if options else {}


def count(n, density):
    return 0 if n == 0 else min(n, max(1, math.floor(density * n + 0.5)))


def read_indices(words, n, k):
    if k == 0:
        return np.zeros(0, np.int64)
    low_bits = (n // k).bit_length() - 1
    bits = np.unpackbits(np.frombuffer(words, np.uint8), bitorder="little").astype(np.int64)
    high = bits[math.ceil(k * low_bits / 32) * 32 :]
    positions = np.flatnonzero(high)
    assert len(positions) == k
    low = [sum(int(bits[i * low_bits + b]) << b for b in range(low_bits)) for i in range(k)]
    return np.array([((int(p) - i) << low_bits) | low[i] for i, p in enumerate(positions)], np.int64)


def read_codes(codes, scales, k, bits, bucket):
    per_byte = 8 // bits
    width = bucket // per_byte
    codes = codes + bytes(len(scales) * width - len(codes))
    values = np.zeros(len(scales) * bucket, np.float32)
    levels = np.float32(2 ** (bits - 1) - 1)
    largest_step = np.float32(8454659 * 2.0**98 if bits == 8 else np.inf)
    for j, scale in enumerate(scales):
        for v in range(bucket):
            code = codes[j * width + v % width] >> (v // width * bits) & (2**bits - 1)
            if bits == 1:
                values[j * bucket + v] = -scale if code else scale
            else:
                signed = code - 2**bits if code >= 2 ** (bits - 1) else code
                values[j * bucket + v] = np.float32(signed) * min(scale / levels, largest_step)
    return values[:k]


def stranger_decodes(blob):
    """Return {name: array} of a payload, from the document alone (and trusting the sender, as a test may)."""
    (length,) = struct.unpack("<Q", blob[:8])
    assert length % 8 == 0
    header = json.loads(blob[8 : 8 + length])
    data = blob[8 + length :]
    metadata = header.pop("__metadata__")
    assert metadata["fedsynsam"] == "1"
    sections = {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}
    shapes = {}
    for entry in metadata["layout"].split(",") if metadata["layout"] else []:
        name, sizes = entry.split(":")
        shapes[unquote(name)] = [int(size) for size in sizes.split("x")] if sizes else []
    n = sum(math.prod(shape) for shape in shapes.values())
    stages = metadata["spec"].split("+")
    k, indices = n, None
    word = re.match("[a-z]+", stages[0])[0]
    if word in ("topk", "chunktopk"):
        density = float(re.search(r":([^\[]+)", stages[0])[1])
        k = count(n, density)
        if word == "chunktopk":
            chunk = int(read_options(stages[0]).get("chunk", 4096))
            k = n // chunk * count(chunk, density) + count(n % chunk, density)
        indices = read_indices(sections["indices"], n, k)
    if "values" in sections:
        values = np.frombuffer(sections["values"], "<f4")
    else:
        bits = int(re.search(r":(\d+)", stages[-1])[1])
        bucket = int(read_options(stages[-1]).get("bucket", 512))
        values = read_codes(sections["codes"], np.frombuffer(sections["scales"], "<f4"), k, bits, bucket)
    assert len(values) == k
    row = np.zeros(n, np.float32)
    row[indices if indices is not None else slice(None)] = values
    result, start = {}, 0
    for name, shape in shapes.items():
        result[name] = row[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return result


def updates():
    generator = torch.Generator().manual_seed(3)
    yield {
        "conv.weight": torch.randn(20, 1, 5, 5, generator=generator),
        "ünïcode, odd:name%+": torch.randn(7, generator=generator),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 3),
        "zeros": torch.zeros(1100),
        "fc/bias": torch.randn(901, generator=generator) * 1e-3,
    }
    yield torch.randn(1, generator=generator)
    yield torch.zeros(0)
    yield {}


@pytest.mark.parametrize("spec", SPECS)
def test_a_decoder_written_from_the_document_agrees(spec):
    compressor = fs.compressor(spec)
    for update in updates():
        state = compressor.init(update)
        for seed in range(2):
            payload, state = compressor.compress(update, state, seed=seed)
            theirs = stranger_decodes(payload.encode())
            ours = payload.decompress()
            ours = {"": ours} if isinstance(ours, torch.Tensor) else ours
            assert list(theirs) == list(ours)
            for name, tensor in ours.items():
                assert theirs[name].shape == tuple(tensor.shape)
                assert np.array_equal(theirs[name].view(np.uint32), tensor.numpy().view(np.uint32)), name


def test_the_examples_of_the_document_are_real_payloads():
    page = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()
    update = {"w": torch.tensor([0, 0, 3, 0, -4, 0, 0.5, 0])}
    compressor = fs.compressor("topk:0.25+quantize:4[bucket=8,rounding=nearest]")
    blob = compressor.compress(update, compressor.init(update), seed=0)[0].encode()
    dump = page.rsplit("```\n", 2)[1]
    assert bytes.fromhex("".join(line.split("  ")[0] for line in dump.splitlines())) == blob
    update = {"conv.weight": torch.ones(3, 30), "conv.bias": torch.ones(10)}
    compressor = fs.compressor("topk:0.1")
    blob = compressor.compress(update, compressor.init(update), seed=0)[0].encode()
    header = page.split("```json\n")[1].split("```")[0].replace("\n", "")
    assert blob[8 : 8 + int.from_bytes(blob[:8], "little")].decode().rstrip() == header
