"""The named algorithms, each a composition of three choices: perturbation, correction, server step.

| choice | options |
|---|---|
| perturbation | none, local (gradient), previous (global update), synthetic (set), consensus (perturbation duals); real and oracle for study |
| correction | none, proximal, momentum, variates (control variates), duals (dynamic) |
| server step | average, dual (adds the mean dual), sam (dual, and clients start ahead), finetune (on the synthetic set) |

`docs/simulator.md` has the rules; what a choice remembers from round to round is in `memory`.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsynsam.errors import ConfigError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.perturbation import (
    Consensus,
    FixedSet,
    FreshData,
    LocalGradient,
    NoPerturbation,
    Perturbation,
    PreviousUpdate,
)
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.streams import ORACLE, REAL_SET, stream


@dataclass(frozen=True)
class Preset:
    """The choices that make an algorithm, where it comes from, and what it takes when nothing is given."""

    source: str
    perturbation: str = "none"
    correction: str = "none"
    server_step: str = "average"
    rho: float = 0.0  # radius of the perturbation, local or the server's
    prox: float | None = None  # λ of the proximal or dual terms
    gradient_share: float | None = None  # α of the momentum correction

    @property
    def learns_a_set(self) -> bool:
        """Whether the server learns a synthetic set."""
        return self.perturbation == "synthetic" or self.server_step == "finetune"


def _dual(source: str, perturbation: str = "none", rho: float = 0.0, server_step: str = "dual") -> Preset:
    return Preset(source, perturbation, "duals", server_step, rho, prox=0.1)


LESAM, OURS = "Fan et al. 2024, arXiv 2405.18890", "arXiv 2602.11584"
PRESETS = {
    "fedsynsam": Preset(OURS, "synthetic", rho=0.05),
    "fedsynsam-s": Preset(f"{OURS} with control variates", "synthetic", "variates", rho=0.05),
    "fedsynsam-d": _dual(f"{OURS} with dynamic duals", "synthetic", 0.05),
    "fedavg": Preset("McMahan et al. 2017, arXiv 1602.05629"),
    "fedprox": Preset("Li et al. 2020, arXiv 1812.06127", correction="proximal", prox=0.1),
    "scaffold": Preset("Karimireddy et al. 2020, arXiv 1910.06378", correction="variates"),
    "feddyn": _dual("Acar et al. 2021, arXiv 2111.04263"),
    "fedsam": Preset("Qu et al. 2022, arXiv 2206.02618", "local", rho=0.05),
    "mofedsam": Preset("Qu et al. 2022, arXiv 2206.02618", "local", "momentum", rho=0.05, gradient_share=0.1),
    "fedgamma": Preset("Dai et al. 2023, doi 10.1109/TNNLS.2023.3304453", "local", "variates", rho=0.01),
    "fedspeed": _dual("Sun et al. 2023, arXiv 2302.10429", "local", 0.05),
    "fedsmoo": _dual("Sun et al. 2023, arXiv 2305.11584", "consensus", 0.05),
    "fedlesam": Preset(LESAM, "previous", rho=0.05),
    "fedlesam-s": Preset(LESAM, "previous", "variates", rho=0.05),
    "fedlesam-d": _dual(LESAM, "previous", 0.05),
    "fedgloss": _dual("Caldarola et al. 2025, arXiv 2412.03752", rho=0.05, server_step="sam"),
    "dynafed": Preset("Pi et al. 2023, arXiv 2211.10878", server_step="finetune"),
    "realset": Preset("a ceiling for study", "real", rho=0.05),
    "oracle": Preset("for study", "oracle", rho=0.05),
}

SYNTHETIC_EVERY = 10  # rounds between renewals of a set that the run learned itself


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with every default that depends on other settings filled in."""
    if config.algorithm not in PRESETS:
        raise ConfigError(f"algorithm: unknown value {config.algorithm!r}; known: {', '.join(PRESETS)}")
    if config.synthetic_every is None:
        config = config.replace(synthetic_every=SYNTHETIC_EVERY if config.synthetic is None else 0)
    preset, room = PRESETS[config.algorithm], min(config.synthetic_start, config.synthetic_window)
    matches_trajectory = preset.learns_a_set and config.synthetic_method == "trajectory"
    if matches_trajectory and config.synthetic_segment > room:
        raise ConfigError(
            f"synthetic_segment: {config.synthetic_segment} rounds do not fit a trajectory of {room} (the smaller of "
            f"synthetic_start and synthetic_window); give {room} or less"
        )
    names = [name for name in ("rho", "prox", "gradient_share") if getattr(config, name) is None]
    return config.replace(**{name: getattr(preset, name) for name in names})


def unlearned_note(config: RunConfig) -> str | None:
    """What to tell the user of a run that ends before its synthetic set is first learned."""
    ends_before = PRESETS[config.algorithm].learns_a_set and config.rounds <= config.synthetic_start
    if not ends_before or config.synthetic is not None:
        return None
    return (
        f"{config.algorithm}: this run of {config.rounds} rounds ends before its synthetic set is learned, after round "
        f"{config.synthetic_start}; give more --rounds or a lower --synthetic-start"
    )


@dataclass(frozen=True)
class Knowledge:
    """What a group of clients may use in a round besides their own data: what the server sent, and what they kept."""

    weights: Tensor  # [P], from which the clients start
    last: list[Tensor | None]  # global weights [P] at each client's last active round
    shared: Batch | None  # the synthetic set, or the real one of `realset`
    memory: Mapping[str, Tensor] = field(default_factory=dict)  # the server's vectors [P] by name
    own: Sequence[Mapping[str, Tensor]] = ()  # each client's vectors [P] by name

    def rows(self, name: str) -> Tensor:
        """The clients' own vectors called `name`, [R, P]."""
        return torch.stack([vectors[name] for vectors in self.own])


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
    if kind == "consensus":
        agreed = knowledge.memory.get("consensus", torch.zeros_like(knowledge.weights))
        return Consensus(knowledge.rows("mu"), agreed, config.rho or 0.0)
    if kind == "oracle":
        count, shape = len(dataset.y_train), (config.local_steps, config.batch_size)
        streams = [stream(config.seed, ORACLE, round_number, client) for client in client_ids]
        return FreshData(Steps(dataset, [rng.integers(count, size=shape) for rng in streams]))
    return NoPerturbation()  # fedavg, fedlesam at the first round of all, and fedsynsam before its set exists


def correction_for(config: RunConfig, knowledge: Knowledge) -> Correction:
    """The correction that `config.algorithm` gives a group of clients in one round.

    | kind | added to or mixed with g = ∇f_i(w + ε) |
    |---|---|
    | proximal | g + λ(w − w_t) |
    | duals | g + λ(w − w_t + h_i) |
    | variates | g + (c − c_i) |
    | momentum | α g + (1 − α) m |
    """
    kind, start, memory = PRESETS[config.algorithm].correction, knowledge.weights, knowledge.memory
    prox = config.prox or 0.0
    if kind == "proximal":
        return Correction(decay=prox, constant=(-prox * start).repeat(len(knowledge.last), 1))
    if kind == "duals":
        return Correction(decay=prox, constant=prox * (knowledge.rows("dual") - start))
    if kind == "variates":
        return Correction(constant=memory.get("variate", torch.zeros_like(start)) - knowledge.rows("variate"))
    if kind == "momentum":
        share = config.gradient_share or 1.0
        momentum = memory.get("momentum", torch.zeros_like(start))
        return Correction(scale=share, constant=((1.0 - share) * momentum).repeat(len(knowledge.last), 1))
    return Correction()


def real_set(dataset: Dataset, images_per_class: int, seed: int) -> Batch:
    """`images_per_class` fixed training images of each class that has them, drawn from `seed`."""
    labels = dataset.y_train.cpu().numpy()
    rng = stream(seed, REAL_SET)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label))[:images_per_class] for label in range(dataset.classes)]
    )
    indices = torch.from_numpy(chosen).to(dataset.y_train.device)
    return dataset.x_train[indices], dataset.y_train[indices]
