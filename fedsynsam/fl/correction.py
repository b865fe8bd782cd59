"""What is added to a local step besides the gradient: every correction of this family is affine in the weights.

w ← w − lr · (scale · ∇f + decay · w + constant)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Correction:
    """`scale`, `decay` and `constant` [R, P] (None: zero) of one round of R clients."""

    scale: float = 1.0
    decay: float = 0.0
    constant: Tensor | None = None

    def __post_init__(self) -> None:
        if self.constant is not None:  # one row for all clients becomes a row for each, once and not at each step
            object.__setattr__(self, "constant", self.constant.contiguous())

    def tensors(self) -> list[Tensor]:
        """What tells one round's correction from another's of the same algorithm."""
        return [] if self.constant is None else [self.constant]
