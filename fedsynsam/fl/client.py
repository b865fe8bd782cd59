"""A group of clients' round: local steps from the global weights, then compressed updates as real bytes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from fedsynsam.compress import Compressor, State
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.cosines import Probe
from fedsynsam.fl.flat import FlatModel, RowModel
from fedsynsam.fl.perturbation import Direction, Perturbation, SteadyPerturbation
from fedsynsam.fl.records import Record
from fedsynsam.fl.steps import Steps
from fedsynsam.ops.clip import clip_rows_
from fedsynsam.ops.local_steps import local_steps
from fedsynsam.ops.sam_plans import Plan, plan_perturb, plan_step
from fedsynsam.wire import Payload


@dataclass(frozen=True)
class Rows:
    """The buffers in which R clients are trained: weights w, perturbed weights w', momentum; one client a row.

    `model` and `ahead` write their gradients to the same tensor: that at w is used up when that at w' is computed.
    """

    model: RowModel
    ahead: RowModel
    velocity: Tensor  # f32 [R, P]

    def __post_init__(self) -> None:
        assert self.ahead.gradient is self.model.gradient


@dataclass(frozen=True)
class LocalRound:
    """What R clients do in one round, but for the weights that they start from."""

    steps: Steps
    perturbation: Perturbation
    correction: Correction

    def tensors(self) -> list[Tensor]:
        """All that differs between two rounds of the same run and the same shapes."""
        return [*self.steps.tensors(), *self.perturbation.tensors(), *self.correction.tensors()]

    def copy(self) -> LocalRound:
        """The same with tensors of its own; only the data set is shared."""
        return copy.deepcopy(self, {id(self.steps.dataset): self.steps.dataset})


def train(
    rows: Rows, start: Tensor, work: LocalRound, config: RunConfig, probes: Sequence[Probe] = ()
) -> tuple[Tensor, ...]:
    """Train R clients from the global weights `start` [P]; return the updates w_K − w_0 [R, P] and mean losses [R].

    What the perturbation made of the clients' own vectors (`Perturbation.results`) comes after these two.

    w ← w − lr · (scale · ∇f(w + ε) + (decay + weight_decay) · w + constant), with ε = rho · d / ‖d‖ from the
    perturbation, or ε = 0 where it gives no direction, ∇f no longer than clip_norm, and the rest from the
    correction. No step waits for the device.
    `probes`, one a client, measure on the way, and change nothing.
    """
    model, correction = rows.model, work.correction
    model.weights.copy_(start.expand_as(model.weights))
    if config.momentum:
        rows.velocity.zero_()
    constant = correction.constant
    if constant is not None and correction.scale != 1.0:
        constant = constant / correction.scale
    options: StepOptions = {
        "lr": config.lr * correction.scale,
        "weight_decay": (config.weight_decay + correction.decay) / correction.scale,
        "momentum": config.momentum,
        "momentum_buffer": rows.velocity if config.momentum else None,
        "correction": constant,
    }
    losses = None if probes else _steps_at_once(rows, work, config, options)
    if losses is None:
        losses = _steps_in_turn(rows, work, config, options, probes)
    return model.weights - start, losses.mean(dim=0), *work.perturbation.results()


class StepOptions(TypedDict):
    """What `sam_step` takes besides weights and gradient."""

    lr: float
    weight_decay: float
    momentum: float
    momentum_buffer: Tensor | None
    correction: Tensor | None


def _steps_at_once(rows: Rows, work: LocalRound, config: RunConfig, options: StepOptions) -> Tensor | None:
    """The losses [K, 1] of the steps as one call, where this library makes the passes itself; otherwise None."""
    model, ahead, steps = rows.model, rows.ahead, work.steps
    network = model.network if isinstance(model, FlatModel) else None
    if network is None or not isinstance(work.perturbation, SteadyPerturbation):
        return None
    batches = steps.stored()
    if batches is None or network.compiled(steps.dataset.image_shape) is None:
        return None
    source = work.perturbation.source(model)
    return local_steps(
        network,
        model.weights,
        batches,
        source,
        rho=config.rho or 0.0,
        clip_norm=config.clip_norm,
        gradient=model.gradient,
        ahead=ahead.weights,
        **options,
    ).view(-1, 1)


def _steps_in_turn(
    rows: Rows, work: LocalRound, config: RunConfig, options: StepOptions, probes: Sequence[Probe]
) -> Tensor:
    """The losses [K, R] of the steps, operation by operation."""
    model, ahead = rows.model, rows.ahead
    step = plan_step(model.weights, model.gradient, **options)  # the gradient is that of `ahead`, too
    planned: tuple[Direction, Plan] | None = None
    losses = []
    for number in range(len(work.steps)):
        batch = work.steps[number]
        for row, probe in enumerate(probes):
            size = work.steps.sizes[row]
            probe(
                model.weights[row], (batch.images[row, :size], batch.labels[row, :size]), number + 1 == len(work.steps)
            )
        direction = work.perturbation.direction(model, batch, number)
        if direction is None:
            losses.append(model.backward_each(batch))
        else:
            if planned is None or not direction.same_tensors(planned[0]):
                planned = (
                    direction,
                    plan_perturb(
                        model.weights,
                        direction.gradient,
                        rho=config.rho or 0.0,
                        synthetic=direction.synthetic,
                        beta=direction.beta,
                        out=ahead.weights,
                    ),
                )
            planned[1]()
            losses.append(ahead.backward_each(batch))
        if config.clip_norm is not None:
            clip_rows_(model.gradient, config.clip_norm)
        step()
    return torch.stack(losses)


@dataclass(frozen=True)
class Upload:
    """What reaches the server from one client, and what stays with the client (`record`)."""

    client_id: int
    payload: Payload  # of its update
    mu: Payload | None  # of FedSMOO's perturbation dual
    wire_bytes: int  # of all its payloads
    record: Record
    loss: float
    num_examples: int
    cosines: dict[str, float]
    descent: Tensor | None = None  # f32 [P], see `memory.descent`; where the server learns a set from it

    @property
    def payloads(self) -> list[Payload]:
        """All that the client sent, in order."""
        return [self.payload] if self.mu is None else [self.payload, self.mu]


def send(
    compressor: Compressor, updates: Tensor, states: Sequence[State], *, seeds: Sequence[int], encode: bool
) -> list[tuple[Payload, State, int]]:
    """Compress the rows of `updates` [R, P], carry them over the wire: each payload as the server has it, state, bytes.

    Without `encode` a payload is handed over as it is, and its length is what encoding it would give.
    """
    sent = []
    for payload, state in compressor.compress_rows(updates, states, seeds=seeds):
        if encode:
            blob = payload.encode()
            payload, length = Payload.decode(blob, like=updates[0]), len(blob)
        else:
            length = payload.wire_bytes
        sent.append((payload, state, length))
    return sent
