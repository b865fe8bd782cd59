"""What all compressors have in common: from an update and a state to a payload and the next state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, NonFiniteError, StateError
from ..ops.seeds import row_seed
from ..wire.manifest import Manifest, Update, display
from ..wire.payload import Payload
from ..wire.plan import Plan, plan_of
from ..wire.spec import Stage, checked_stage, spell
from .state import State


class Outcome(NamedTuple):
    """What the compression of one row gives: the payload's tensors, the next residual, and whether it was finite."""

    tensors: dict[str, Tensor]
    residual: Tensor | None  # [n] float32
    nonfinite: Tensor  # [1] bool; if set, the rest is meaningless


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
    def compress_row(self, row: Tensor, residual: Tensor | None, seed: int) -> Outcome:
        """Compress one flat update [1, n] on top of the residual [1, n] or None."""

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

    def init(self, update: Update) -> State:
        """Return the state before the first update: for tensors like those of `update`, nothing left unsent.

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
        if not isinstance(state, State):
            raise StateError(f"state must come from init or a former compress, not be a {type(state).__name__}")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ArgumentError(f"seed must be an int, not {seed!r}")
        manifest = Manifest.of(update)
        row = manifest.flatten(update)
        state.check(manifest, self.residual, row.device)
        old = None if state.residual is None else state.residual[None]
        outcome = self.compress_row(row[None], old, row_seed(seed, state.step, 0))
        if outcome.nonfinite.item():
            raise NonFiniteError(_fault(manifest, row, state.residual))
        payload = Payload(self.spec, manifest, outcome.tensors)
        return payload, State(manifest, outcome.residual, state.step + 1)


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


def _fault(manifest: Manifest, row: Tensor, residual: Tensor | None) -> str:
    """Name the first tensor that is not finite once the residual is added."""
    total = row.float() if residual is None else row.float() + residual
    wrong = ~torch.isfinite(total)
    position = int(wrong.to(torch.uint8).argmax())
    culprit = display(manifest.locate(position))
    if torch.isfinite(row[position].float()):
        return f"{culprit} of the update overflows float32 with its residual; nothing was sent, the state is unchanged"
    return f"{culprit} of the update holds NaN or infinity; nothing was sent, the state is unchanged"
