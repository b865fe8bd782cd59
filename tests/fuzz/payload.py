"""Coverage-guided fuzzing of Payload.decode, decompress and aggregate.

    python tests/fuzz/payload.py tests/fuzz/corpus -max_total_time=600     with atheris: look for faults
    python tests/fuzz/payload.py --replay tests/fuzz/corpus                without it: run what was found before

An input is a first byte that chooses what it is, and the rest: a whole blob, or what follows a right header. Two
outcomes are legal: PayloadError, or a payload that encodes to the very bytes and holds finite numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None and "--replay" not in sys.argv:
    with atheris.instrument_imports(include=["fedsynsam.wire"]):
        import fedsynsam as fs
else:
    import fedsynsam as fs

SPECS = (
    "none", "topk:0.1", "topk:1", "chunktopk:0.1[chunk=32]", "quantize:1[bucket=16]", "quantize:2[bucket=16,norm=l2]",
    "quantize:4[bucket=32]", "quantize:8[bucket=8]", "topk:0.2+quantize:1[bucket=8]",
    "chunktopk:0.2[chunk=50]+quantize:4[bucket=8]",
)  # fmt: skip
LIKE = {"a": torch.zeros(9, 7), "z": torch.zeros(40), "b": torch.zeros(50)}
RAW = len(SPECS)  # first bytes from here on: the rest is a whole blob


def encoded(spec: str, scale: float) -> bytes:
    """A real payload of `spec`."""
    compressor, generator = fs.compressor(spec), torch.Generator().manual_seed(1)
    update = {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in LIKE.items()}
    return compressor.compress(update, compressor.init(update), seed=2)[0].encode()


def split(blob: bytes) -> tuple[bytes, bytes]:
    """Header with its length, and the tensors' bytes."""
    stop = 8 + int.from_bytes(blob[:8], "little")
    return blob[:stop], blob[stop:]


HEADERS = [split(encoded(spec, 1.0))[0] for spec in SPECS]


def seeds() -> list[bytes]:
    """Inputs to start from: real payloads, with and without their headers."""
    found = []
    for number, spec in enumerate(SPECS):
        for scale in (1.0, 0.0):
            blob = encoded(spec, scale)
            found += [bytes([number]) + split(blob)[1], bytes([RAW]) + blob]
    return found


def blob_of(data: bytes) -> bytes | None:
    """Return the bytes that an input stands for; None for the empty input."""
    if not data:
        return None
    return bytes(data[1:]) if data[0] >= RAW else HEADERS[data[0]] + bytes(data[1:])


def one_input(data: bytes) -> None:
    """Decode one input, and use what comes out."""
    blob = blob_of(data)
    if blob is None:
        return
    try:
        info = fs.Payload.inspect(blob)
        assert info.wire_bytes == len(blob)
    except fs.PayloadError:
        info = None
    try:
        payload = fs.Payload.decode(blob, like=LIKE)
    except fs.PayloadError:
        return
    assert info is not None, "decode takes what inspect refuses"
    assert payload.encode() == blob, "another encoding of the same payload"
    parts = payload.decompress()
    mean = fs.aggregate([payload, payload], weights=[1.0, 3.0])
    for name, tensor in LIKE.items():
        assert parts[name].shape == mean[name].shape == tensor.shape
        assert torch.isfinite(parts[name]).all(), "a payload that is not finite"


def main() -> None:
    torch.set_num_threads(1)
    if "--replay" in sys.argv:
        folder = Path(sys.argv[sys.argv.index("--replay") + 1])
        inputs = [*seeds(), *(path.read_bytes() for path in sorted(folder.iterdir()))]
        for data in inputs:
            one_input(data)
        print(f"{len(inputs)} inputs, no fault")
        return
    if atheris is None:
        raise SystemExit("fuzzing needs atheris: pip install atheris (or give --replay FOLDER)")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (folder / f"seed-{number:02}").write_bytes(data)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
