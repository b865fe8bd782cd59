"""Payloads as bytes: readable by safetensors, small, the same on every backend."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

import fedsynsam as fs
from fedsynsam.ops.backend import why_not

SPECS = [
    "none",
    "topk:0.01",
    "topk:1",
    "chunktopk:0.05",
    "quantize:1",
    "quantize:2[norm=l2]",
    "quantize:4[bucket=64]",
    "quantize:8[residual=true]",
    "topk:0.01+quantize:4",
    "chunktopk:0.1[chunk=100]+quantize:2[bucket=32]",
]


def compress(spec, update, seed=0):
    compressor = fs.compressor(spec)
    return compressor.compress(update, compressor.init(update), seed=seed)[0]


def small_model(seed=0):
    """Eight tensors with 36,970 elements: two convolutions and two layers, as in a small federated benchmark."""
    shapes = {"conv1.weight": (8, 1, 5, 5), "conv1.bias": (8,), "conv2.weight": (16, 8, 5, 5), "conv2.bias": (16,),
              "fc1.weight": (128, 256), "fc1.bias": (128,), "fc2.weight": (10, 64), "fc2.bias": (10,)}  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("update", [small_model(), torch.zeros(0), torch.tensor(1.5)], ids=["model", "empty", "scalar"])
def test_the_safetensors_library_reads_it(spec, update, tmp_path):
    payload = compress(spec, update)
    blob = payload.encode()
    tensors = load(blob)
    sections = payload.sections()[1:]
    assert set(tensors) == {section.name for section in sections}
    for section in sections:
        assert tensors[section.name].numel() * tensors[section.name].element_size() == section.nbytes
    for name in set(tensors) & {"values", "scales"}:
        assert torch.equal(tensors[name], payload.tensors[name])
    if "codes" in tensors:
        sent = tensors["codes"].numel()
        assert torch.equal(tensors["codes"], payload.tensors["codes"][:sent])
        assert not payload.tensors["codes"][sent:].any()
    path = tmp_path / "payload.safetensors"
    path.write_bytes(blob)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert metadata == {"fedsynsam": "1", "spec": spec, "layout": payload.manifest.layout}
        for name in file.keys():  # noqa: SIM118  (not a dict)
            assert torch.equal(file.get_tensor(name), tensors[name])


@pytest.mark.skipif(why_not("cpu") is not None, reason="the C++ extension is not built")
@pytest.mark.parametrize("spec", SPECS)
def test_reference_and_cpu_write_the_same_bytes(spec):
    update = small_model(3)
    update["zeros"] = torch.zeros(2000)
    update["ties"] = torch.ones(500)
    blobs = {}
    for backend in ("reference", "cpu"):
        with fs.use_backend(backend):
            compressor = fs.compressor(spec)
            state = compressor.init(update)
            blobs[backend] = []
            for _ in range(2):
                payload, state = compressor.compress(update, state, seed=9)
                blobs[backend].append(payload.encode())
            decoded = [fs.Payload.decode(blob, like=update) for blob in blobs[backend]]
            assert [payload.encode() for payload in decoded] == blobs[backend]
            blobs[backend].append(fs.aggregate(decoded, [1, 2])["fc1.weight"].numpy().tobytes())
    assert blobs["reference"] == blobs["cpu"]


N = 1_200_000


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("none", 4.001),
        ("topk:0.01", 5.3),
        ("chunktopk:0.01", 5.3),
        ("topk:0.1", 4 + (2 + math.log2(10)) / 8),
        ("topk:0.01+quantize:4", 1.75),
        ("quantize:4", 0.5 + 4 / 512 + 0.001),
        ("quantize:1", 0.125 + 4 / 512 + 0.001),
    ],
)
def test_bytes_for_each_value_sent(spec, most):
    update = {"w": torch.randn(N, generator=torch.Generator().manual_seed(1))}
    payload = compress(spec, update)
    assert len(payload.encode()) <= most * payload.num_sent


def test_a_small_model_shrinks_more_than_sixty_fold():
    update = small_model()
    payload = compress("topk:0.01", update)
    blob = payload.encode()
    assert payload.num_elements == 36_970
    assert payload.sections()[0].name == "container"
    assert payload.sections()[0].nbytes <= 400
    assert 4 * payload.num_elements / len(blob) >= 60
    assert 4 * payload.num_elements / len(compress("topk:0.01+quantize:4", update).encode()) >= 130


@pytest.mark.parametrize("spec", SPECS)
def test_sections_add_up_to_the_measured_length(spec):
    update = small_model()
    payload = compress(spec, update)
    sections = payload.sections()
    assert sum(section.nbytes for section in sections) == len(payload.encode()) == payload.wire_bytes
    for section in sections:
        assert section.bits_per_value == 8 * section.nbytes / payload.num_sent
    info = fs.Payload.inspect(payload.encode())
    assert list(info.sections) == sections
    assert info.manifest == payload.manifest
    assert info.wire_bytes == payload.wire_bytes
    assert (info.version, info.spec) == ("1", spec)


def test_wire_bytes_is_measured_without_being_asked_to_encode():
    payload = compress("topk:0.01", small_model())
    assert payload.wire_bytes == len(payload.encode())
    assert fs.Payload.decode(payload.encode(), like=small_model()).wire_bytes == payload.wire_bytes


def test_the_data_is_aligned():
    for spec in SPECS:
        for update in (small_model(), {"a" * length: torch.ones(9) for length in range(1, 9)}):
            blob = compress(spec, update).encode()
            assert int.from_bytes(blob[:8], "little") % 8 == 0
            header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
            for entry in header.values():
                if entry.get("dtype") in ("U32", "F32"):
                    assert entry["data_offsets"][0] % 4 == 0


def test_decompress_gives_tensors_of_its_own():
    update = torch.randn(100)
    for spec in SPECS:
        payload = compress(spec, update)
        blob = payload.encode()
        payload.decompress().fill_(9)
        assert payload.encode() == blob


def test_like_may_be_tensors_or_a_manifest():
    update = small_model()
    blob = compress("topk:0.01", update).encode()
    manifest = fs.Manifest.of(update)
    half = {name: tensor.half() for name, tensor in update.items()}
    for like in (update, manifest, half, {name: torch.nn.Parameter(tensor) for name, tensor in update.items()}):
        assert fs.Payload.decode(blob, like=like).encode() == blob
    with pytest.raises(fs.PayloadError, match="another order"):
        fs.Payload.decode(blob, like=dict(reversed(update.items())))
