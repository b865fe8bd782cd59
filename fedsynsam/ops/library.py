"""Registration of the operations with `torch.library`: one schema, one implementation, one fake each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("fedsynsam", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `fedsynsam::<schema>` for CPU and CUDA tensors and return the callable operator.

    `implementation` chooses the backend at run time (`backend.choose`), so that a compiled graph obeys
    `use_backend` like eager code. `fake` computes the outputs' shapes and dtypes from those of the inputs.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, _noting_writes(schema, implementation), key)
    torch.library.register_fake(f"fedsynsam::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.fedsynsam, name).default


def nothing(*arguments: Any) -> None:
    """Fake of an operator that only writes into its arguments."""


def _noting_writes(schema: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation, which tells autograd of the tensors that the schema says it writes.

    So that a backward pass which needs what was there before raises, as after any operation in place.
    """
    arguments = schema[schema.index("(") + 1 : schema.rindex(") ->")].split(",")
    written = [place for place, argument in enumerate(arguments) if "!" in argument]
    if not written:
        return implementation

    def run(*arguments: Any) -> Any:
        for place in written:
            if arguments[place] is not None and not arguments[place].is_inference():
                torch.autograd.graph.increment_version(arguments[place])
        return implementation(*arguments)

    return run
