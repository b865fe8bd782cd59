"""What a compressor remembers between rounds: the residual, and how many updates it has compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import StateError
from ..wire.manifest import Manifest, display
from ..wire.payload import own_memory

_PREFIX = "residual/"


@dataclass(eq=False)
class State:
    """The state of one sender's compressor; `compress` never changes it, but returns the next one.

    Each client keeps its own. `state_dict` and `load_state_dict` go by tensor name, so that a state survives a
    restart in which the flat row is laid out anew.
    """

    manifest: Manifest
    """Names and shapes of the update's tensors, in the order of the flat row."""
    residual: Tensor | None
    """What has not been sent yet: float32 [n], or None where the compressor keeps no residual."""
    step: int = 0
    """Number of updates compressed; mixed into the seed, so that no two draws of a sender are the same."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "residual": None if self.residual is None else own_memory(self.residual)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return `residual/<name>` (float32, the tensor's shape) for every tensor, and `step` (int64, 0-d); copies."""
        tensors = {"step": torch.tensor(self.step, dtype=torch.int64, device="cpu")}
        if self.residual is not None:
            parts = self.manifest.split(self.residual)
            named = {"": parts} if isinstance(parts, Tensor) else parts
            tensors |= {_PREFIX + name: part.clone() for name, part in named.items()}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> State:
        """Replace this state's content by that of a `state_dict` (in any order) and return the state itself.

        Raises StateError naming the tensor that is missing, unexpected, or of wrong shape, dtype or value; the
        state is then unchanged.
        """
        if not isinstance(tensors, Mapping):
            raise StateError(
                f"the state must be a dict of tensors, as state_dict gives it, not a {type(tensors).__name__}"
            )
        shapes = dict(self.manifest.entries) if self.residual is not None else {}
        wanted = ["step", *(_PREFIX + name for name in shapes)]
        if missing := [key for key in wanted if key not in tensors]:
            raise StateError(f"the state lacks {missing[0]!r}; it must hold {', '.join(wanted[:8])}")
        if extra := sorted(set(tensors) - set(wanted)):
            raise StateError(f"the state holds {extra[0]!r}, which this compressor and model do not have")
        step = checked_step(tensors["step"])
        parts = [checked_residual(name, tensors[_PREFIX + name], shape) for name, shape in shapes.items()]
        if self.residual is not None:
            device = self.residual.device
            self.residual = torch.cat([part.to(device) for part in parts]) if parts else self.residual.clone()
        self.step = step
        return self

    def check(self, manifest: Manifest, keeps_residual: bool, device: torch.device) -> None:
        """Raise StateError unless the state fits an update of this manifest, a compressor, and a device."""
        if difference := self.manifest.difference(manifest):
            raise StateError(f"the update does not fit the state made by init: {difference}")
        if keeps_residual != (self.residual is not None):
            has, keeps = ("no", "keeps one") if keeps_residual else ("a", "keeps none")
            raise StateError(f"the state has {has} residual, but the compressor {keeps}; use the compressor's own init")
        if self.residual is not None and self.residual.device != device:
            raise StateError(f"the update lies on {device}, the state's residual on {self.residual.device}")


def checked_step(step: Tensor) -> int:
    if not isinstance(step, Tensor) or step.numel() != 1 or step.dtype.is_floating_point or step.dtype.is_complex:
        raise StateError("'step' must be a tensor of one whole number")
    if (value := int(step)) < 0:
        raise StateError(f"'step' is {value}; it counts updates and cannot be negative")
    return value


def checked_residual(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    key = _PREFIX + name
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise StateError(f"{key!r} must be a float32 tensor, not {found}; any other dtype would lose what is not sent")
    if tuple(tensor.shape) != shape:
        raise StateError(f"{key!r} has the shape {list(tensor.shape)}, but {display(name)} has {list(shape)}")
    if not torch.isfinite(tensor).all():
        raise StateError(f"{key!r} holds NaN or infinity; the state is damaged")
    return tensor.detach().reshape(-1)
