"""Communication hooks of DistributedDataParallel side by side: `python -m benchmarks.ddp --out FILE.csv`.

Gloo processes on the loopback train the small CNN on the embedded data, once with each hook: the same weights, batches
and optimizer. All hooks live in the same processes and take their steps in turn, so that times are compared under the
same load. A row holds what a hook has reached after `step` steps:

    train_loss            mean over ranks and over the steps since the row before
    test_loss, accuracy   on the 2,000 test images
    handed                bytes that a rank hands to its collectives in a step: payload or tensor
    sent                  bytes that leave a rank in a step, as its TCP sockets counted them (Linux), without headers
    ring                  what a ring needs: (R - 1) · handed to gather, 2 (R - 1) / R · handed to reduce
    step_ms               median of a step: forward, backward with its hook, and the optimizer; of the slowest rank

Bytes and times a step leave ten steps of warm-up out, in the first of which DDP lays out its buckets and PowerSGD
reduces whole gradients; `sent_total` counts from the start. Draws FILE.png.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import fedsynsam as fs
from fedsynsam.fl.data import Dataset, load_dataset
from fedsynsam.fl.models import build_model

from .provenance import provenance
from .rows import write_rows

Row = dict[str, Any]
SPECS = ("topk:0.01", "topk:0.1", "quantize:4", "topk:0.01+quantize:4")
HOOKS = ("none", "fp16", "PowerSGD rank 1", "PowerSGD rank 2", *SPECS)
WARM_UP = 10
BATCH = 32  # of each rank
LEARNING_RATE, MOMENTUM = 0.02, 0.9
BYTES_SENT, BYTES_SENT_AGAIN = 200, 208  # offsets in struct tcp_info


@dataclass
class Lane:
    """One hook with the model that it trains."""

    hook: str
    parallel: DistributedDataParallel
    state: Any
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    handed: list[int] = field(default_factory=list)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take a step, and note its loss, its time and its bytes."""
        dist.barrier()
        sent, handed, start = bytes_sent(), self._counted(), time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.parallel(images), labels)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.sent.append(bytes_sent() - sent)
        self.handed.append(self._counted() - handed or self._dense())
        self.losses.append(float(loss.detach()))

    def _counted(self) -> int:
        """Bytes handed to collectives until now, as the hook's state has counted them; 0 if it counts none."""
        if isinstance(self.state, fs.DDPState):
            return self.state.bytes_sent
        return 4 * int(getattr(self.state, "total_numel_after_compression", 0))

    def _dense(self) -> int:
        """Bytes of the whole gradient as it is reduced."""
        return (2 if self.hook == "fp16" else 4) * sum(parameter.numel() for parameter in self.parallel.parameters())


def lane(hook: str, data: Dataset, seed: int) -> Lane:
    """Return the model of one hook at its first step."""
    parallel = DistributedDataParallel(build_model("cnn", data.image_shape, data.classes, seed))
    state: Any = None
    if hook == "fp16":
        parallel.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif hook.startswith("PowerSGD"):
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=int(hook.split()[-1]), start_powerSGD_iter=2, random_seed=seed
        )
        parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook != "none":
        state = fs.DDPState(parallel, hook, seed=seed)
        parallel.register_comm_hook(state, fs.ddp_hook)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    return Lane(hook, parallel, state, optimizer)


def bytes_sent() -> int:
    """Return what this process's open TCP sockets have sent so far, retransmissions not counted."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, struct.error):
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as copy:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            total += struct.unpack_from("Q", info, BYTES_SENT)[0] - struct.unpack_from("Q", info, BYTES_SENT_AGAIN)[0]
    return total


def batches(data: Dataset, rank: int, size: int, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of this rank's share of the training data, drawn with replacement."""
    images, labels = data.x_train[rank::size], data.y_train[rank::size]
    generator = torch.Generator().manual_seed(1_000 * seed + rank)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        yield images[chosen], labels[chosen]


def train(rank: int, size: int, seed: int, steps: int, every: int, hooks: Sequence[str]) -> list[Row]:
    """Train all hooks in turn, step by step; return the rows, on rank 0."""
    data = load_dataset("fashion-mnist-subset")
    lanes = [lane(hook, data, seed) for hook in hooks]
    rows: list[Row] = []
    for step, (images, labels) in enumerate(batches(data, rank, size, seed, steps), 1):
        for one in lanes:
            one.step(images, labels)
        if step % every == 0 or step == steps:
            rows += [row(one, data, seed, step, step - (step - 1) // every * every) for one in lanes]
    return rows if rank == 0 else []


def row(one: Lane, data: Dataset, seed: int, step: int, since: int) -> Row:
    """Return what a hook has reached; `since` steps ago was the last row."""
    counted = slice(min(WARM_UP, step - 1), None)
    mine = {
        "train_loss": statistics.fmean(one.losses[-since:]),
        "handed": statistics.fmean(one.handed[counted]),
        "sent": statistics.fmean(one.sent[counted]),
        "sent_total": sum(one.sent),
        "step_ms": 1e3 * statistics.median(one.seconds[counted]),
    }
    ranks: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, mine)
    mean = {key: statistics.fmean(rank[key] for rank in ranks) for key in mine}
    size, gathers = len(ranks), isinstance(one.state, fs.DDPState)
    with torch.no_grad():
        scores = one.parallel.module(data.x_test[:])
        accuracy = float((scores.argmax(1) == data.y_test).float().mean())
        test_loss = float(nn.functional.cross_entropy(scores, data.y_test))
    return {
        "ranks": size, "seed": seed, "hook": one.hook, "step": step,
        "train_loss": mean["train_loss"], "test_loss": test_loss, "accuracy": accuracy,
        "handed": mean["handed"], "sent": mean["sent"], "sent_total": mean["sent_total"],
        "ring": mean["handed"] * (size - 1 if gathers else 2 * (size - 1) / size),
        "step_ms": max(rank["step_ms"] for rank in ranks),
    }  # fmt: skip


def work(options: argparse.Namespace) -> None:
    """Be one rank; rank 0 prints its rows as JSON."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{options.store}", rank=options.rank, world_size=options.ranks[0],
        timeout=timedelta(seconds=300),
    )  # fmt: skip
    rows = train(options.rank, options.ranks[0], options.seeds[0], options.steps, options.every, options.hooks)
    dist.barrier()
    gc.collect()  # DDP modules hold the process group; its threads must end before the interpreter does
    dist.destroy_process_group()
    if options.rank == 0:
        print(json.dumps(rows))


def launch(size: int, seed: int, options: argparse.Namespace) -> list[Row]:
    """Start the ranks, wait, and return the rows."""
    words = [sys.executable, "-m", "benchmarks.ddp", "--ranks", str(size), "--seeds", str(seed)]
    words += ["--steps", str(options.steps), "--every", str(options.every), "--hooks", *options.hooks]
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [*words, "--rank", str(rank), "--store", f"{folder}/store"],
                stdout=subprocess.PIPE, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        try:
            printed = [process.communicate()[0] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
    if any(process.returncode for process in ranks):
        raise SystemExit(f"ranks ended with {[process.returncode for process in ranks]}")
    return list(json.loads(printed[0]))


def table(rows: Sequence[Row], last: int) -> str:
    """Return the table of the last step in Markdown, means over seeds."""
    lines = ["| ranks | hook | test loss | accuracy | sent, bytes | ring, bytes | time a step |"]
    lines.append("|---|---|---|---|---|---|---|")
    final = [row for row in rows if int(row["step"]) == last]
    for size, hook in dict.fromkeys((row["ranks"], row["hook"]) for row in final):
        mine = [row for row in final if (row["ranks"], row["hook"]) == (size, hook)]

        def mean(key: str, mine: Sequence[Row] = mine) -> float:
            return statistics.fmean(float(row[key]) for row in mine)

        spread = statistics.stdev([float(row["test_loss"]) for row in mine]) if len(mine) > 1 else 0.0
        lines.append(
            f"| {size} | {hook} | {mean('test_loss'):.3f} ± {spread:.3f} | {100 * mean('accuracy'):.1f} % "
            f"| {mean('sent'):,.0f} | {mean('ring'):,.0f} | {mean('step_ms'):.1f} ms |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the test loss over steps and over bytes sent by a rank, for each number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from fedsynsam.report.figures import COLORS

    sizes = list(dict.fromkeys(row["ranks"] for row in rows))
    figure, axes = plt.subplots(len(sizes), 2, figsize=(9, 3.2 * len(sizes)), layout="constrained", squeeze=False)
    for (left, right), size in zip(axes, sizes, strict=True):
        for colour, hook in zip(COLORS, dict.fromkeys(row["hook"] for row in rows), strict=False):
            mine = [row for row in rows if (row["ranks"], row["hook"]) == (size, hook)]
            steps = sorted({int(row["step"]) for row in mine})
            loss = [statistics.fmean(float(r["test_loss"]) for r in mine if int(r["step"]) == s) for s in steps]
            sent = [statistics.fmean(float(r["sent_total"]) / 1e6 for r in mine if int(r["step"]) == s) for s in steps]
            left.plot(steps, loss, color=colour, marker=".", label=hook)
            right.plot(sent, loss, color=colour, marker=".", label=hook)
        left.set(xlabel="step", ylabel=f"test loss, {size} ranks")
        right.set(xlabel="sent by a rank, MB", xscale="log")
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ddp", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="processes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=50, help="steps from row to row")
    parser.add_argument("--hooks", nargs="+", default=list(HOOKS), help="none, fp16, 'PowerSGD rank N', or a spec")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank is not None:
        work(options)
        return
    if options.out is None:
        parser.error("--out FILE.csv is needed")
    source = provenance(torch.device("cpu"))
    rows = [row | source for size in options.ranks for seed in options.seeds for row in launch(size, seed, options)]
    texts = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    write_rows(texts, list(rows[0]), options.out)
    draw(rows, options.out.with_suffix(".png"))
    print(table(rows, options.steps))


if __name__ == "__main__":
    main()
