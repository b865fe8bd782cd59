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

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsynsam.errors import ConfigError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset, take
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.perturbation import FixedSet, FreshData, LocalGradient, NoPerturbation, Perturbation, PreviousUpdate
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

SYNTHETIC_EVERY = 10  # rounds between renewals of a set that the run learned itself


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with every default that depends on other settings filled in."""
    if config.algorithm not in PRESETS:
        raise ConfigError(f"algorithm: unknown value {config.algorithm!r}; known: {', '.join(PRESETS)}")
    if config.synthetic_every is None:
        config = config.replace(synthetic_every=SYNTHETIC_EVERY if config.synthetic is None else 0)
    return config if config.rho is not None else config.replace(rho=PRESETS[config.algorithm].rho)


@dataclass(frozen=True)
class Knowledge:
    """What a client may use in a round besides its own data: the part of the server's state that it was sent."""

    weights: Tensor  # global weights [P]
    last: Tensor | None  # global weights at the client's last active round [P]
    shared: Batch | None  # the synthetic set, or the real one of `realset`


def perturbation_for(
    config: RunConfig, knowledge: Knowledge, dataset: Dataset, round_number: int, client_id: int
) -> Perturbation:
    """The perturbation that `config.algorithm` gives one client in one round."""
    kind = PRESETS[config.algorithm].perturbation
    if kind == "local":
        return LocalGradient()
    if kind == "previous":
        return PreviousUpdate(knowledge.weights, knowledge.last)
    if kind in ("synthetic", "real") and knowledge.shared is not None:
        return FixedSet(knowledge.shared, config.beta, once=config.synthetic_refresh == "round")
    if kind == "oracle":
        return FreshData(dataset, config.batch_size, stream(config.seed, ORACLE, round_number, client_id))
    return NoPerturbation()  # fedavg, and fedsynsam before its set exists


def real_set(dataset: Dataset, images_per_class: int, seed: int) -> Batch:
    """`images_per_class` fixed training images of each class that has them, drawn from `seed`."""
    labels = dataset.y_train.cpu().numpy()
    rng = stream(seed, REAL_SET)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label))[:images_per_class] for label in range(dataset.classes)]
    )
    indices = torch.from_numpy(chosen).to(dataset.y_train.device)
    return take(dataset.x_train, indices), dataset.y_train[indices]
