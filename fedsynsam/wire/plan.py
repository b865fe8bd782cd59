"""What a spec implies for the bytes: which tensors a payload of n elements holds, and how long each is.

The decoder computes every size from here (spec and manifest) and believes no number that arrives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..errors import SpecError
from ..ops.index_coding import index_words
from ..ops.topk import chunk_count_kept, count_kept
from .spec import Stage, parse, spell

ITEM_BYTES = {"U32": 4, "F32": 4, "U8": 1}


@dataclass(frozen=True)
class Section:
    """One tensor of a payload on the wire: one-dimensional, `count` items of the safetensors type `dtype`."""

    name: str
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Plan:
    """The parameters of a spec that decide its bytes; `density` None keeps all, `bits` None sends float32."""

    density: float | None = None
    chunk: int | None = None
    bits: int | None = None
    bucket: int = 512

    @property
    def sparse(self) -> bool:
        return self.density is not None

    def count_sent(self, n: int) -> int:
        """Return how many of n elements are sent."""
        if self.density is None:
            return n
        if self.chunk is None:
            return count_kept(n, self.density)
        return chunk_count_kept(n, self.density, self.chunk)

    def count_buckets(self, n: int) -> int:
        """Return how many buckets of the quantizer the values sent of n elements fill."""
        return -(-self.count_sent(n) // self.bucket)

    @property
    def bucket_bytes(self) -> int:
        """Return the bytes of a full bucket's codes."""
        assert self.bits is not None  # for mypy: only asked of quantized payloads
        return self.bucket * self.bits // 8

    def code_bytes(self, n: int) -> int:
        """Return the bytes of the codes on the wire.

        A bucket's byte j holds the codes of its values j + l·bucket_bytes, so a short last bucket of r values
        leaves all bytes from r on empty: they are not sent.
        """
        full, short = divmod(self.count_sent(n), self.bucket)
        return full * self.bucket_bytes + min(short, self.bucket_bytes)

    def sections(self, n: int) -> tuple[Section, ...]:
        """Return the tensors of a payload for n elements, in the order of their bytes (4-byte items first)."""
        kept = self.count_sent(n)
        indices = (Section("indices", "U32", index_words(n, kept)),) if self.sparse else ()
        if self.bits is None:
            return (*indices, Section("values", "F32", kept))
        return (*indices, Section("scales", "F32", self.count_buckets(n)), Section("codes", "U8", self.code_bytes(n)))


def plan_of(stages: tuple[Stage, ...]) -> Plan:
    """Return the plan of a parsed spec."""
    fields: dict[str, float | int] = {}
    for stage in stages:
        fields |= {name: stage.values[name] for name in ("density", "chunk", "bits", "bucket") if name in stage.values}
    return Plan(**fields)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def parse_plan(spec: str) -> Plan:
    """Return the plan of a canonical spec string; SpecError if the string is not canonical."""
    stages = parse(spec)
    if spell(stages) != spec:
        raise SpecError(f"spec {spec!r} is not in its canonical form {spell(stages)!r}")
    return plan_of(stages)
