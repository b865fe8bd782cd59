"""What one ahead-of-time compilation is given."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """One specialization of a Triton kernel: argument types, constants and warps."""

    name: str
    kernel: Any
    signature: dict[str, str | tuple[str, ...]]
    constants: dict[str, Any]
    num_warps: int

    def of_ones(self) -> Case:
        """The same with every integer argument 1, which Triton compiles as a constant."""
        integers = [name for name, kind in self.signature.items() if isinstance(kind, str) and kind.startswith("i")]
        return self._replace(
            name=f"{self.name} of ones",
            signature={name: kind for name, kind in self.signature.items() if name not in integers},
            constants={**self.constants, **dict.fromkeys(integers, 1)},
        )
