"""Clients and a server that only share a folder: `python examples/file_exchange.py FOLDER`.

A client leaves `round-R/client-C.payload` there and keeps its memory in `client-C.safetensors`, so that it may be a new
process in every round. Files appear under their names only when they are whole.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import fedsynsam as fs

SHAPES = {"weight": torch.zeros(100, 20), "bias": torch.zeros(100)}
CLIENTS = 3


def client(folder: Path, number: int, round_number: int, update: dict[str, torch.Tensor]) -> None:
    uplink, memory = fs.Uplink("topk:0.05", like=SHAPES, seed=number), folder / f"client-{number}.safetensors"
    if memory.exists():
        uplink.load_state_dict(load_file(memory))
    write(folder / f"round-{round_number}" / f"client-{number}.payload", uplink.encode(update))
    temporary = memory.with_suffix(".part")
    save_file(uplink.state_dict(), temporary)
    os.replace(temporary, memory)


def server(folder: Path, round_number: int) -> dict[str, torch.Tensor]:
    payloads = []
    for path in sorted((folder / f"round-{round_number}").glob("*.payload")):
        try:
            payloads.append(fs.Payload.decode(path.read_bytes(), like=SHAPES, spec="topk:0.05"))
        except fs.PayloadError as error:  # a damaged or hostile file costs one client, not the round
            print(f"{path.name} left out: {error}")
    return fs.aggregate(payloads)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    wanted = {name: torch.randn_like(tensor) for name, tensor in SHAPES.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in SHAPES.items()}
    for round_number in range(40):
        for number in range(CLIENTS):
            client(folder, number, round_number, {name: (wanted[name] - total[name]) / 20 for name in SHAPES})
        if round_number == 3:
            write(folder / "round-3" / "client-9.payload", b"not a payload")
        mean = server(folder, round_number)
        total = {name: total[name] + mean[name] for name in SHAPES}
    left = sum(float((wanted[name] - total[name]).square().sum()) for name in SHAPES)
    start = sum(float(tensor.square().sum()) for tensor in wanted.values())
    print(f"distance left {(left / start) ** 0.5:.3f} of 1.000 after 40 rounds of 5 % of the values each")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    main(Path(sys.argv[1]))
