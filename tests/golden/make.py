"""Writes the golden payloads beside this file: `python tests/golden/make.py`. Nothing else ever writes them.

Run it only when the format changes on purpose, with a new version number, and say so in the changelog.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import fedsynsam as fs

HERE = Path(__file__).parent
STEPS = 2
SEED = 20240229
SPECS = (
    "none",
    "topk:0.02",
    "topk:0.3[residual=false]",
    "chunktopk:0.05[chunk=256]",
    "quantize:1",
    "quantize:2[norm=l2]",
    "quantize:4",
    "quantize:4[bucket=64,rounding=nearest]",
    "quantize:8[bucket=128,residual=true]",
    "topk:0.05+quantize:4",
    "topk:0.2+quantize:1[bucket=32]",
    "chunktopk:0.1[chunk=200]+quantize:2[bucket=16,norm=l2]",
)


def noise(count: int, salt: int) -> np.ndarray:
    """Return float32 numbers in [−1, 1) over seven binades, from integers alone, so that every machine agrees."""
    i = np.arange(count, dtype=np.uint64) + np.uint64(salt * 7919 + 1)
    mixed = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return ((mixed.astype(np.float64) - 2.0**23) * 2.0 ** -(23 + (i % np.uint64(7)).astype(np.float64))).astype(
        np.float32
    )


def update(step: int) -> dict[str, torch.Tensor]:
    """Return the update of a step: noise, ties, zeros of both signs, denormals, odd shapes and names."""
    return {
        "conv.weight": torch.from_numpy(noise(600, step)).reshape(8, 3, 5, 5),
        "tïes, or not": torch.tensor([0.5, -0.5] * 40),
        "zeros": torch.cat([torch.zeros(530), -torch.zeros(7)]),
        "scalar": torch.tensor(0.75),
        "empty": torch.zeros(0, 4),
        "denormals": torch.tensor([1e-40, -3e-42, 1.4e-45, 2e-38]),
        "half": torch.from_numpy(noise(97, step + 5)).half().float(),
    }


def payloads(spec: str) -> Iterator[fs.Payload]:
    """Yield the payloads of the steps, one state carried through."""
    compressor = fs.compressor(spec)
    state = compressor.init(update(0))
    for step in range(STEPS):
        payload, state = compressor.compress(update(step), state, seed=SEED)
        yield payload


def mean() -> bytes:
    """Return the weighted mean of the last payloads of all specs, as little-endian float32."""
    last = [list(payloads(spec))[-1] for spec in SPECS]
    tensors = fs.aggregate(last, weights=range(1, len(SPECS) + 1))
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).numpy().astype("<f4").tobytes()


def golden() -> dict[str, bytes]:
    """Return file name → bytes of all golden files."""
    files = {"mean.f32": mean()}
    for spec in SPECS:
        stem = re.sub("[^a-z0-9.]+", "_", spec).strip("_")
        files |= {f"{stem}.{step}.safetensors": payload.encode() for step, payload in enumerate(payloads(spec))}
    return files


if __name__ == "__main__":
    for name, content in golden().items():
        (HERE / name).write_bytes(content)
        print(f"{len(content):6d} {name}")
