"""`fedsynsam sharpness`: how sharp the loss is at the weights that a run ended with."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from ..errors import ConfigError
from ..fl.checkpoint import load_weights
from ..fl.data import load_dataset
from ..fl.machine import choose_device
from ..fl.models import build_model
from ..fl.runfolder import check_data, load_config
from ..fl.sharpness import Sharpness, hutchinson_trace
from ..fl.slices import Slices
from ..fl.streams import SHARPNESS as SHARPNESS_STREAM
from ..fl.streams import WEIGHTS, number, stream
from ..fl.tensorfile import write_atomically
from ..report.figures import save_slices
from .arguments import parse


@dataclass(frozen=True)
class SharpnessCommand:
    """Largest eigenvalues and trace of the training loss's Hessian at the weights of a run's checkpoint, and slices of
    the loss around them; written to sharpness.json and slices.png in the run's folder."""

    run: tyro.conf.Positional[Path] = tyro.MISSING
    """Folder of a run."""
    count: int = 5
    """Eigenvalues, largest first."""
    sample: int = 2000
    """Training images, drawn from the run's seed."""
    probes: int = 20
    """Random vectors of the trace's estimate."""
    points: int = 21
    """Points of a slice along a side; 0 leaves the slices out."""
    radius: float = 0.5
    """Half the length of a slice, in multiples of the filters' norms."""
    data_dir: str | None = None
    """Folder of the data set, where it is not the one of the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam sharpness`; return the exit code."""
    command = parse(SharpnessCommand(), argv, "fedsynsam sharpness")
    for name, least in (("count", 1), ("sample", 1), ("probes", 1), ("points", 0)):
        if getattr(command, name) < least:
            raise ConfigError(f"{name}: is {getattr(command, name)}; expected {least} or more")
    if command.points == 1:
        raise ConfigError("points: is 1; a slice has at least 2 (0 leaves the slices out)")
    if not 0 < command.radius < math.inf:
        raise ConfigError(f"radius: is {command.radius}; expected a finite number above 0")
    config = load_config(command.run).replace(device=command.device)
    device = choose_device(config.device, None)
    dataset = load_dataset(config.dataset, command.data_dir or config.data_dir)
    check_data(command.run, dataset.crc32())
    module = build_model(config.model, dataset.image_shape, dataset.classes, number(config.seed, WEIGHTS)).to(device)
    weights, finished = load_weights(command.run / "checkpoint")
    weights = weights.to(device)
    sharpness = Sharpness(module, dataset.to(device), config.seed, sample=command.sample)
    waiting = Console(stderr=True).status  # a line that moves, on a terminal alone
    with waiting(f"eigenvalues of the Hessian, {command.count}"):
        values = sharpness.largest(weights, command.count)
    with waiting(f"trace, {command.probes} probes"):
        rng = stream(config.seed, SHARPNESS_STREAM, 2)
        trace = hutchinson_trace(sharpness.product(weights), weights, rng, probes=command.probes)
    found: dict[str, Any] = {
        "round": finished,
        "eigenvalues": values,
        "trace": trace,
        "sample": len(sharpness.sample[1]),
        "probes": command.probes,
    }
    for place, value in enumerate(values, start=1):
        print(f"eigenvalue {place}  {value:.4g}")
    print(f"trace         {trace:.4g}")
    if command.points:
        slices = Slices(module, sharpness.sample, weights, config.seed)
        places = np.linspace(-command.radius, command.radius, command.points)
        with waiting(f"slices, {command.points} x {command.points} points"):
            line, plane = slices.line(places), slices.plane(places)
        found |= {"places": places.tolist(), "line": line.tolist(), "plane": plane.tolist()}
        title = f"{config.algorithm}, {config.compressor}, seed {config.seed}, round {finished}"
        print(save_slices(places, line, plane, command.run / "slices.png", title))
    target = command.run / "sharpness.json"
    write_atomically(target, json.dumps(found).encode() + b"\n")
    print(target)
    return 0
