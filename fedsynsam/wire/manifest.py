"""The names and shapes of an update's tensors, and the way between an update and one flat row.

The order of the dict is the order of the flat row. Both sides of the wire must list the tensors in the same order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..ops.memory import empty_row
from ..ops.topk_arguments import MAX_ELEMENTS

Update: TypeAlias = Tensor | Mapping[str, Tensor]
Like: TypeAlias = "Update | Manifest | nn.Module"  # what has the names and shapes of an update

MAX_DIMENSIONS = 64
MAX_LAYOUT_LENGTH = 2**20 - 4096  # leaves room for the rest of a header of at most 1 MiB

_DTYPES_OF_OPS = (torch.float32, torch.bfloat16, torch.float16)
_SHAPE = re.compile(r"|(0|[1-9][0-9]{0,9})(x(0|[1-9][0-9]{0,9})){0,63}")


@dataclass(frozen=True)
class Manifest:
    """Names and shapes, in flat order. A bare tensor is a single entry with the empty name.

    entries: pairs of a name and a shape; any sequences do. Raises ArgumentError naming the entry that is none.
    `layout` is the compact text form on the wire: `conv.weight:8x1x5x5,conv.bias:8`.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(map(_entry, self.entries)))
        seen: set[str] = set()
        for name, shape in self.entries:
            if name in seen:
                raise ArgumentError(f"a manifest names {display(name)} twice")
            seen.add(name)
            if len(shape) > MAX_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
                raise ArgumentError(f"{display(name)} has the shape {shape}; "
                                    f"a shape is at most {MAX_DIMENSIONS} whole numbers ≥ 0")  # fmt: skip
        if "" in seen and len(seen) > 1:
            raise ArgumentError("an empty tensor name is reserved for a bare tensor; give every tensor a name")
        if self.num_elements > MAX_ELEMENTS:
            raise ArgumentError(f"an update of {self.num_elements} elements is too large for one payload; "
                                f"send it in parts of at most {MAX_ELEMENTS}")  # fmt: skip
        if len(self.layout) > MAX_LAYOUT_LENGTH:
            raise ArgumentError(f"the names and shapes take {len(self.layout)} characters; "
                                f"a payload holds at most {MAX_LAYOUT_LENGTH}")  # fmt: skip

    @classmethod
    def of(cls, update: Like) -> Manifest:
        """Return the manifest of a tensor, a dict of tensors, a module's parameters, or a manifest (itself).

        Raises ArgumentError naming the tensor for anything that is not a dense floating-point tensor with a
        non-empty string as its name.
        """
        if isinstance(update, Manifest):
            return update
        update = _tensors_of(update)
        if isinstance(update, Tensor):
            return _manifest((("", _checked_shape("", update)),))
        if not isinstance(update, Mapping):
            raise ArgumentError(f"an update must be a tensor or a dict of tensors, not {type(update).__name__}")
        for name in update:
            if not isinstance(name, str) or not name:
                raise ArgumentError(f"tensor names must be non-empty strings, not {name!r}")
        return _manifest(tuple((name, _checked_shape(name, tensor)) for name, tensor in update.items()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor."""
        return tuple(math.prod(shape) for _, shape in self.entries)

    @cached_property
    def num_elements(self) -> int:
        """Elements of all tensors."""
        return sum(self.sizes)

    @cached_property
    def layout(self) -> str:
        """The text form `name:8x1x5x5,other:10`; names are percent-encoded UTF-8."""
        return ",".join(f"{_escaped(name)}:{'x'.join(map(str, shape))}" for name, shape in self.entries)

    @classmethod
    def from_layout(cls, layout: str) -> Manifest:
        """Return the manifest that a layout text spells; ArgumentError unless it is the canonical text."""
        if len(layout) > MAX_LAYOUT_LENGTH:
            raise ArgumentError(f"a layout has at most {MAX_LAYOUT_LENGTH} characters, not {len(layout)}")
        manifest = cls(tuple(map(_parse_entry, layout.split(",")))) if layout else cls(())
        if manifest.layout != layout:
            raise ArgumentError("the layout is not in its canonical form (percent-encoding of the names)")
        return manifest

    def device_of(self, update: Like) -> torch.device:
        """Return the device of the update's tensors; ArgumentError if they are several.

        It is the CPU if there are no tensors, or only shapes of some (on the device `meta`).
        """
        if isinstance(update, Manifest):
            return torch.device("cpu")
        tensors = _tensors_of(update)
        devices = {tensor.device for tensor in ([tensors] if isinstance(tensors, Tensor) else tensors.values())}
        if len(devices) > 1:
            raise ArgumentError(f"the tensors lie on several devices: {', '.join(sorted(map(str, devices)))}")
        return torch.device("cpu") if devices <= {torch.device("meta")} else devices.pop()

    def flatten(self, update: Update) -> Tensor:
        """Return the tensors as one new contiguous row [n] (bf16, f16 if all are; else f32), detached."""
        if not isinstance(update, (Tensor, Mapping)):
            raise ArgumentError(f"an update must be a tensor or a dict of tensors, not {type(update).__name__}")
        tensors = [update] if isinstance(update, Tensor) else list(update.values())
        if not tensors:
            return torch.zeros(0, dtype=torch.float32)
        self.device_of(update)
        dtypes = {tensor.dtype for tensor in tensors}
        dtype = tensors[0].dtype if len(dtypes) == 1 and tensors[0].dtype in _DTYPES_OF_OPS else torch.float32
        rows = [detached(tensor).reshape(-1).to(dtype) for tensor in tensors]
        # a copy even of a single tensor: a payload must not follow its update's changes
        return torch.cat(rows, out=empty_row(sum(self.sizes), dtype, rows[0].device))

    def split(self, row: Tensor) -> Tensor | dict[str, Tensor]:
        """Return a row [n] in the structure of the update, as views of the row."""
        parts = zip(self.entries, row.split(self.sizes), strict=True) if self.entries else ()
        tensors = {name: part.view(shape) for (name, shape), part in parts}
        return tensors.get("", tensors)

    def locate(self, position: int) -> str:
        """Return the name of the tensor that holds a position of the flat row."""
        for (name, _), size in zip(self.entries, self.sizes, strict=True):
            if position < size:
                return name
            position -= size
        raise ArgumentError("the position lies behind the last tensor")

    def difference(self, other: Manifest) -> str:
        """Say in one line how `other` differs from this manifest, or return an empty string."""
        if self.entries == other.entries:
            return ""
        mine, theirs = dict(self.entries), dict(other.entries)
        if missing := [name for name in mine if name not in theirs]:
            return f"{_listed(missing)} missing"
        if extra := [name for name in theirs if name not in mine]:
            return f"{_listed(extra)} not expected"
        for name, shape in mine.items():
            if theirs[name] != shape:
                return f"{display(name)} has the shape {list(theirs[name])}, expected {list(shape)}"
        return f"same tensors in another order: {_listed(list(theirs))}, expected {_listed(list(mine))}"


def detached(tensor: Tensor) -> Tensor:
    """Return the values as the operations take them: outside autograd, plainly in memory, float32 if not shorter."""
    plain = tensor.detach().resolve_neg()
    return plain if plain.dtype in _DTYPES_OF_OPS else plain.to(torch.float32)


def _tensors_of(like: Update | nn.Module) -> Update:
    return dict(like.named_parameters()) if isinstance(like, nn.Module) else like


def _entry(entry: Any) -> tuple[str, tuple[int, ...]]:
    """A pair of a name and a shape as a manifest keeps it."""
    try:
        name, sizes = entry
        shape = tuple(sizes)
    except (TypeError, ValueError):
        raise ArgumentError(f"an entry of a manifest is a pair of a name and a shape, not {entry!r:.80}") from None
    if not isinstance(name, str):
        raise ArgumentError(f"tensor names must be strings, not {name!r:.80}")
    return name, shape


@lru_cache(maxsize=64)
def _manifest(entries: tuple[tuple[str, tuple[int, ...]], ...]) -> Manifest:
    return Manifest(entries)  # a simulator asks thousands of times for the same one


def display(name: str) -> str:
    """Return how an error message calls the tensor `name`."""
    return f"tensor {name[:80]!r}" if name else "the tensor"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:4])
    return f"tensors {shown}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _checked_shape(name: str, tensor: object) -> tuple[int, ...]:
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{display(name)} of the update is a {type(tensor).__name__}, not a torch.Tensor")
    if not tensor.dtype.is_floating_point:
        raise ArgumentError(f"{display(name)} of the update is {tensor.dtype}; only floating-point tensors compress")
    if tensor.layout != torch.strided:
        raise ArgumentError(f"{display(name)} of the update is {tensor.layout}; make it dense first")
    return tuple(tensor.shape)


def _escaped(name: str) -> str:
    try:
        return quote(name, safe="/")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"tensor name {name!r} cannot be written as UTF-8") from error


def _parse_entry(text: str) -> tuple[str, tuple[int, ...]]:
    name, colon, sizes = text.partition(":")
    if not colon or not _SHAPE.fullmatch(sizes):
        raise ArgumentError(f"layout entry {text[:80]!r} must be name:SIZExSIZE…")
    try:
        decoded = unquote(name, errors="strict")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"layout name {name[:80]!r} is not percent-encoded UTF-8") from error
    return decoded, tuple(map(int, sizes.split("x"))) if sizes else ()
