"""Draws the pictures of docs/concepts.md from runs of the library: `python -m benchmarks.concepts --out docs/images`.

`residual.png`: what a receiver has of a sender's updates so far, with and without feedback.
`bytes.png`: encoded bytes over density, and the error of a single payload over its bytes.
`sam.png`: one step of SAM on a loss of two weights, and the loss between two minima beside the highest nearby.
Everything is seeded; equal versions of matplotlib draw equal pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import fedsynsam as fs
from fedsynsam.report.figures import COLORS, STYLE

N = 100_000
START, SHARP, FLAT = (-0.35, 0.3), (-0.75, 0.15), (0.8, -0.35)  # places in the plane of two weights
RHO, RATE = 0.35, 0.4


# ---- the residual ----


def feedback_errors(spec: str, steps: int = 60) -> list[float]:
    """Return ‖Σ sent − Σ updates‖ / ‖Σ updates‖ after each step; an update is a steady part and noise, n = 10,000."""
    generator = torch.Generator().manual_seed(0)
    steady = torch.randn(10_000, generator=generator)
    compressor = fs.compressor(spec)
    state, sent, total, errors = compressor.init(steady), torch.zeros(10_000), torch.zeros(10_000), list[float]()
    for step in range(steps):
        update = steady + torch.randn(10_000, generator=generator)
        payload, state = compressor.compress(update, state, seed=step)
        received = payload.decompress()
        assert isinstance(received, Tensor)
        sent, total = sent + received, total + update
        errors.append(float((sent - total).norm() / total.norm()))
    return errors


def small_entry(spec: str, steps: int = 60) -> tuple[list[float], list[float]]:
    """Return the residual of a small steady entry after each step, and the sum of what was sent of it."""
    update = torch.linspace(0, 1, 101)  # the same in each step
    compressor, entry = fs.compressor(spec), 15
    state, sent, kept, sums = compressor.init(update), 0.0, list[float](), list[float]()
    for step in range(steps):
        payload, state = compressor.compress(update, state, seed=step)
        received = payload.decompress()
        assert isinstance(received, Tensor)
        assert state.residual is not None
        sent += float(received[entry])
        kept.append(float(state.residual[entry]))
        sums.append(sent)
    return kept, sums


def draw_residual() -> Figure:
    """Return the picture of errors with and without feedback, and of a single small entry."""
    figure, (left, right) = panels()
    for color, spec in zip(COLORS, ("topk:0.1", "topk:0.02+quantize:4"), strict=False):
        left.plot(feedback_errors(spec), color=color, label=f"{spec}, with residual")
        without = f"{spec}[residual=false]" if "+" not in spec else spec.replace("+", "[residual=false]+")
        left.plot(feedback_errors(without), color=color, linestyle="--", label=f"{spec}, without")
    left.set(
        xlabel="step", ylabel="what the receiver lacks, relative", ylim=(0, 1.4), title="sum of all updates so far"
    )
    left.legend(fontsize=8)
    kept, sums = small_entry("topk:0.1")
    right.step(range(1, 61), sums, where="post", color=COLORS[0], label="sent so far")
    right.plot(range(1, 61), kept, color=COLORS[2], marker=".", label="residual")
    right.plot(
        range(1, 61), [0.15 * step for step in range(1, 61)], color="#777777", linestyle=":", label="updates so far"
    )
    right.set(xlabel="step", title="one entry of 0.15 among entries up to 1 (topk:0.1)")
    right.legend(fontsize=8)
    return figure


# ---- bytes, bits and density ----


def heavy_tailed() -> Tensor:
    """An update as training gives them: few large entries, many small ones (Student's t, 3 degrees of freedom)."""
    return torch.from_numpy(np.random.default_rng(0).standard_t(3, N).astype(np.float32))


def weigh(spec: str, update: Tensor) -> tuple[int, float]:
    """Return the encoded bytes of one payload, and ‖decompressed − update‖ / ‖update‖."""
    compressor = fs.compressor(spec)
    payload, _ = compressor.compress(update, compressor.init(update), seed=0)
    received = payload.decompress()
    assert isinstance(received, Tensor)
    return len(payload.encode()), float((received - update).norm() / update.norm())


def draw_bytes() -> Figure:
    """Return the picture of bytes over density, and of errors over bytes."""
    figure, (left, right) = panels()
    update, densities = heavy_tailed(), np.logspace(-3, 0, 13)
    for color, bits in zip(COLORS, ("", "+quantize:8", "+quantize:4", "+quantize:2"), strict=False):
        points = [weigh(f"topk:{density:.4g}{bits}", update) for density in densities]
        label = f"topk:d{bits}" if bits else "topk:d (32 bits)"
        left.plot(densities, [size for size, _ in points], color=color, marker=".", label=label)
        right.plot(*zip(*points, strict=True), color=color, marker=".", label=label)
    right.text(0.97, 0.96, "with 2 bits the error exceeds 1", fontsize=8, ha="right", transform=right.transAxes)
    quantized = [weigh(f"quantize:{bits}", update) for bits in (2, 4, 8)]
    right.plot(*zip(*quantized, strict=True), color="#555555", marker="s", linestyle="", label="quantize:4, 8")
    for size, _ in quantized:
        left.axhline(size, color="#555555", linewidth=0.8)
    left.axhline(4 * N, color="#555555", linewidth=0.8, linestyle="--")
    left.text(1e-3, 4.4 * N, "dense float32", fontsize=8, color="#555555")
    left.text(1e-3, 1.1 * quantized[-1][0], "quantize:8, 4, 2 (all entries)", fontsize=8, color="#555555")
    left.set(xscale="log", yscale="log", xlabel="density d", ylabel="bytes of the payload", title=f"{N:,} values")
    right.set(xscale="log", xlabel="bytes of the payload", ylabel="error of one payload, relative", ylim=(0, 1.05))
    right.set_title("what one payload leaves out")
    right.legend(fontsize=8)
    return figure


# ---- SAM ----


def loss(w: Tensor) -> Tensor:
    """A loss of two weights [..., 2] with a narrow minimum and a wide one that is hardly less deep."""
    sharp = ((w - torch.tensor(SHARP)) ** 2).sum(-1) / (2 * 0.2**2)
    flat = ((w - torch.tensor(FLAT)) ** 2).sum(-1) / (2 * 0.8**2)
    return 1.3 - torch.exp(-sharp) - 0.95 * torch.exp(-flat) + 0.05 * (w**2).sum(-1)


def sam_step(start: tuple[float, float]) -> tuple[list[float], list[float], list[float]]:
    """Return w' and the next w of one step of `fs.SAM`, and where a step of SGD leads."""
    w = torch.nn.Parameter(torch.tensor(start))
    optimizer = fs.SAM([w], torch.optim.SGD, lr=RATE, rho=RHO)
    loss(w).backward()
    assert w.grad is not None
    plain = (w - RATE * w.grad).tolist()
    optimizer.first_step(zero_grad=True)
    perturbed = w.detach().tolist()
    loss(w).backward()
    optimizer.second_step()
    return perturbed, w.detach().tolist(), plain


def along_the_line() -> tuple[np.ndarray, Tensor, Tensor]:
    """Return places from the sharp (0) to the flat minimum (1), the loss there, and the highest within ρ of them."""
    places, angles = np.linspace(-0.25, 1.25, 301), np.linspace(0, 2 * np.pi, 73)
    radii = np.linspace(0, RHO, 12)[:, None, None]
    line = torch.tensor(SHARP) + torch.from_numpy(places)[:, None] * (torch.tensor(FLAT) - torch.tensor(SHARP))
    disc = torch.from_numpy((radii * np.stack([np.cos(angles), np.sin(angles)], -1)).reshape(-1, 2))
    return places, loss(line), loss(line[:, None] + disc).amax(1)


def draw_sam() -> Figure:
    """Return the picture of one step, and of the loss that SAM looks at."""
    figure, (left, right) = panels()
    contours(left)
    perturbed, after, plain = sam_step(START)
    for target, color, label in (
        (perturbed, COLORS[2], "first_step: uphill by ρ, to w'"),
        (after, COLORS[3], "second_step: back to w, then by the gradient at w'"),
        (plain, COLORS[1], "plain SGD, by the gradient at w"),
    ):
        left.annotate("", target, START, arrowprops={"arrowstyle": "->", "color": color, "lw": 2.2})
        left.plot([], [], color=color, linewidth=2.2, label=label)
    for place, name in ((START, "w"), (perturbed, "w'")):
        left.plot(*place, "o", color="black", markersize=4)
        left.annotate(name, place, textcoords="offset points", xytext=(6, 4), fontsize=10)
    left.set_title("one step")
    left.legend(fontsize=8, loc="lower left", frameon=True)
    places, here, there = along_the_line()
    right.plot(places, here, color=COLORS[1], label="at w: what SGD lowers")
    right.plot(places, there, color=COLORS[3], label=f"highest within ρ = {RHO} of w: what SAM lowers")
    right.set(xlabel="place on the line: 0 sharp, 1 flat minimum", ylabel="loss", title="between the two minima")
    right.legend(fontsize=8)
    return figure


def contours(axis: Axes) -> None:
    x, y = np.meshgrid(np.linspace(-1.6, 1.9, 180), np.linspace(-1.4, 1.3, 140))
    heights = loss(torch.from_numpy(np.stack([x, y], -1).astype(np.float32))).numpy()
    axis.contourf(x, y, heights, levels=24, cmap="Greys", alpha=0.6)
    axis.text(SHARP[0], SHARP[1] - 0.4, "sharp", ha="center", fontsize=9)
    axis.text(FLAT[0], FLAT[1] - 0.35, "flat", ha="center", fontsize=9)
    axis.set(xlabel="first weight", ylabel="second weight")
    axis.grid(False)


def panels() -> tuple[Figure, tuple[Axes, Axes]]:
    """Return a figure of two panels side by side."""
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)


PICTURES = {"residual": draw_residual, "bytes": draw_bytes, "sam": draw_sam}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concepts", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the PNG files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        with matplotlib.rc_context(STYLE):
            path = options.out / f"{name}.png"
            draw().savefig(path, dpi=130, metadata={"Software": None})
        print(path)


if __name__ == "__main__":
    main()
