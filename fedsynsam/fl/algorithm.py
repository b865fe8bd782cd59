"""The named algorithms, each a composition of three choices: perturbation, correction, server step.

| algorithm | perturbation | correction | server step |
|---|---|---|---|
| fedavg | none | none | average |
| fedsam | local gradient | none | average |
| fedlesam | previous global update | none | average |
| fedsynsam | gradient of the synthetic set | none | average |
| realset | gradient of a fixed real set of the same size | none | average |
| oracle | gradient of a fresh batch of all data | none | average |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsynsam.errors import ConfigError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.perturbation import FixedSet, FreshData, LocalGradient, NoPerturbation, Perturbation, PreviousUpdate
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.streams import ORACLE, REAL_SET, stream


@dataclass(frozen=True)
class Preset:
    """The choices that make an algorithm, and the radius it takes when none is given."""

    perturbation: str
    rho: float
    correction: str = "none"
    server_step: str = "average"


PRESETS = {
    "fedavg": Preset("none", 0.0),
    "fedsam": Preset("local", 0.05),
    "fedlesam": Preset("previous", 0.05),
    "fedsynsam": Preset("synthetic", 0.05),
    "realset": Preset("real", 0.05),
    "oracle": Preset("oracle", 0.05),
}


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with every default that depends on the algorithm filled in."""
    if config.algorithm not in PRESETS:
        raise ConfigError(f"algorithm: unknown value {config.algorithm!r}; known: {', '.join(PRESETS)}")
    return config if config.rho is not None else config.replace(rho=PRESETS[config.algorithm].rho)


@dataclass(frozen=True)
class Knowledge:
    """What a group of clients may use in a round besides their own data: what the server sent, and what they kept."""

    weights: Tensor  # global weights [P]
    last: list[Tensor | None]  # global weights [P] at each client's last active round
    shared: Batch | None  # the synthetic set, or the real one of `realset`


def perturbation_for(
    config: RunConfig, knowledge: Knowledge, dataset: Dataset, round_number: int, client_ids: Sequence[int]
) -> Perturbation:
    """The perturbation that `config.algorithm` gives a group of clients in one round."""
    kind = PRESETS[config.algorithm].perturbation
    if kind == "local":
        return LocalGradient()
    if kind == "previous" and any(last is not None for last in knowledge.last):
        return PreviousUpdate(knowledge.weights, knowledge.last)
    if kind in ("synthetic", "real") and knowledge.shared is not None:
        return FixedSet(knowledge.shared, config.beta, once=config.synthetic_refresh == "round")
    if kind == "oracle":
        count, shape = len(dataset.y_train), (config.local_steps, config.batch_size)
        streams = [stream(config.seed, ORACLE, round_number, client) for client in client_ids]
        return FreshData(Steps(dataset, [rng.integers(count, size=shape) for rng in streams]))
    return NoPerturbation()  # fedavg, fedlesam at the first round of all, and fedsynsam before its set exists


def real_set(dataset: Dataset, images_per_class: int, seed: int) -> Batch:
    """`images_per_class` fixed training images of each class that has them, drawn from `seed`."""
    labels = dataset.y_train.cpu().numpy()
    rng = stream(seed, REAL_SET)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label))[:images_per_class] for label in range(dataset.classes)]
    )
    indices = torch.from_numpy(chosen).to(dataset.y_train.device)
    return dataset.x_train[indices], dataset.y_train[indices]
