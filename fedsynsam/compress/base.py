"""What all compressors have in common: from an update and a state to a payload and the next state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, NonFiniteError, StateError
from ..ops.seeds import row_seed
from ..wire.manifest import Like, Manifest, Update, detached, display
from ..wire.payload import Payload
from ..wire.plan import Plan, plan_of
from ..wire.spec import Stage, checked_stage, spell
from .state import State


class Outcome(NamedTuple):
    """What the compression of rows gives: the payloads' tensors, the next residuals, and which rows were not finite."""

    tensors: dict[str, Tensor]  # [C, …] each
    residual: Tensor | None  # [C, n] float32
    nonfinite: Tensor  # [C] bool; where it is set, the rest of the row is meaningless


class Compressor(ABC):
    """A way to compress updates, fixed by its configuration: immutable, comparable, and shared by all clients.

    `str(compressor)` is the canonical spec string, and `fedsynsam.compressor` its inverse.
    """

    word: ClassVar[str]
    residual: bool

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the spec string."""

    @abstractmethod
    def apply(self, rows: Tensor, residual: Tensor | None, seeds: Tensor) -> Outcome:
        """Compress flat updates [C, n] on top of the residuals [C, n] or None, with the seeds int64 [C]."""

    @cached_property
    def spec(self) -> str:
        """The canonical spec string."""
        return spell(self.stages)

    @cached_property
    def plan(self) -> Plan:
        """The parameters that decide the bytes."""
        return plan_of(self.stages)

    def __str__(self) -> str:
        return self.spec

    def init(self, update: Like) -> State:
        """Return the state before the first update: for tensors like those of `update`, nothing left unsent.

        `update` is an update, a module, whose parameters are meant, or a Manifest.

        Raises ArgumentError naming a tensor that cannot be compressed (not floating-point, not dense).
        """
        manifest = Manifest.of(update)
        if not self.residual:
            return State(manifest, None)
        device = manifest.device_of(update)
        return State(manifest, torch.zeros(manifest.num_elements, dtype=torch.float32, device=device))

    def compress(self, update: Update, state: State, *, seed: int) -> tuple[Payload, State]:
        """Return the payload of `update` and the next state; a pure function of the arguments.

        The update is a floating-point tensor or a dict of them, on one device; arithmetic is float32. The same
        arguments give the same bytes on every backend. `seed` is mixed with `state.step`, so a constant seed still
        draws anew each time; give every client its own seed (`fedsynsam.row_seed`), or their rounding errors will
        be correlated.

        Raises NonFiniteError naming the tensor that holds NaN or infinity (or overflows float32 together with the
        residual): then there is no payload, and the state is as it was. StateError if the state belongs to other
        tensors or another kind of compressor; ArgumentError for anything that is no update or no seed.
        """
        _check_call(state, seed)
        manifest = Manifest.of(update)
        row = manifest.flatten(update)
        return self._compress(manifest, row[None], [state], [seed])[0]

    def compress_rows(
        self, updates: Tensor, states: Sequence[State], *, seeds: Sequence[int]
    ) -> list[tuple[Payload, State]]:
        """`compress` on each row of `updates` [C, n], an update of shape [n], with one launch for all of them.

        states, seeds: one a row. The payloads and states are those that C calls of `compress` would give, bit for bit.
        Raises what `compress` does, for the first row that has something wrong; NonFiniteError names that row.
        """
        states, seeds = list(states), list(seeds)
        if not isinstance(updates, Tensor) or updates.dim() != 2 or not len(updates) == len(states) == len(seeds):
            shape = list(updates.shape) if isinstance(updates, Tensor) else type(updates).__name__
            raise ArgumentError(
                f"updates must be a matrix with a state and a seed for each row; it is {shape}, "
                f"with {len(states)} states and {len(seeds)} seeds"
            )
        for state, seed in zip(states, seeds, strict=True):
            _check_call(state, seed)
        return self._compress(Manifest.of(updates[0]), detached(updates), states, seeds) if len(updates) else []

    def _compress(
        self, manifest: Manifest, rows: Tensor, states: Sequence[State], seeds: Sequence[int]
    ) -> list[tuple[Payload, State]]:
        for state in states:
            state.check(manifest, self.residual, rows.device)
        residuals = [state.residual for state in states if state.residual is not None]
        old = None
        if residuals:
            old = residuals[0][None] if len(residuals) == 1 else torch.stack(residuals)
        mixed = [row_seed(seed, state.step, 0) for state, seed in zip(states, seeds, strict=True)]
        outcome = self.apply(rows, old, torch.tensor(mixed, dtype=torch.int64, device=rows.device))
        if outcome.nonfinite.any().item():  # the one time that the host waits
            raise _refusal(manifest, rows, states, int(outcome.nonfinite.to(torch.uint8).argmax()))
        results = []
        for number, state in enumerate(states):
            payload = Payload(self.spec, manifest, {name: part[number] for name, part in outcome.tensors.items()})
            residual = None if outcome.residual is None else outcome.residual[number]
            results.append((payload, State(manifest, residual, state.step + 1)))
        return results


class SingleStage(Compressor):
    """A compressor of one stage; a frozen dataclass whose fields are the parameters of its word."""

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        for name, value in checked_stage(self.word, values).values.items():
            object.__setattr__(self, name, value)

    @property
    def stages(self) -> tuple[Stage, ...]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return (Stage(self.word, values),)


def _check_call(state: State, seed: int) -> None:
    if not isinstance(state, State):
        raise StateError(f"state must come from init or a former compress, not be a {type(state).__name__}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentError(f"seed must be an int, not {seed!r}")


def _refusal(manifest: Manifest, rows: Tensor, states: Sequence[State], number: int) -> NonFiniteError:
    """The error for a row that is not finite; made here, since a frame that holds what it raises outlives its call."""
    where = f"row {number}: " if len(rows) > 1 else ""
    error = NonFiniteError(where + _fault(manifest, rows[number], states[number].residual))
    error.row = number
    return error


def _fault(manifest: Manifest, row: Tensor, residual: Tensor | None) -> str:
    """Name the first tensor that is not finite once the residual is added."""
    total = row.float() if residual is None else row.float() + residual
    wrong = ~torch.isfinite(total)
    position = int(wrong.to(torch.uint8).argmax())
    culprit = display(manifest.locate(position))
    if torch.isfinite(row[position].float()):
        return f"{culprit} of the update overflows float32 with its residual; nothing was sent, the state is unchanged"
    return f"{culprit} of the update holds NaN or infinity in float32; nothing was sent, the state is unchanged"
