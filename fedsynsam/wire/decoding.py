"""From the bytes of a payload to its tensors. Nothing in the bytes is believed.

The manifest (from `like=`) and the spec imply every size; the header is compared with them, the length of the
blob too, and only then are tensors read. Without a manifest (`inspect`) the layout is taken from the header, and
the length of the blob bounds every allocation: tensors stay in their sparse or packed form.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError, PayloadError, SpecError
from ..ops.memory import empty_row
from . import checks
from .container import (
    LONGEST_CACHED,
    VERSION,
    VERSION_KEY,
    header_bytes,
    header_entries,
    header_limit,
    read_header,
    split_header,
)
from .manifest import Manifest
from .plan import Plan, parse_plan
from .spec import MAX_SPEC_LENGTH

# on the wire, and in memory; U32: the bits, as the ops want them
_DTYPES = {"U32": ("<i4", torch.int32), "F32": ("<f4", torch.float32), "U8": ("u1", torch.uint8)}


def decode_tensors(
    blob: bytes | bytearray | memoryview, manifest: Manifest | None, spec: str | None
) -> tuple[str, Manifest, dict[str, Tensor]]:
    """Return spec, manifest and tensors of a payload; PayloadError naming what is wrong.

    The tensors are on the CPU: `indices` int32 [k], `values` f32 [k], `codes` u8 (padded to whole buckets), `scales`.
    """
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise ArgumentError(f"a payload is decoded from bytes, not from {type(blob).__name__}")
    view = memoryview(blob)
    if not view.c_contiguous:
        raise ArgumentError("a payload is decoded from contiguous bytes, not from a memoryview with gaps")
    view = view.cast("B") if view.nbytes else memoryview(b"")  # what has a zero among its dimensions cannot be cast
    header, data = split_header(view, header_limit(manifest))
    # all clients of a server send the same header, which is judged once
    judge = _judged if manifest is None or len(header) > LONGEST_CACHED else _judged_before
    sent_spec, manifest = judge(bytes(header), manifest, spec)
    sections = parse_plan(sent_spec).sections(manifest.num_elements)
    expected = sum(section.nbytes for section in sections)
    if len(data) != expected:
        fault = "trailing bytes" if len(data) > expected else "cut off"
        raise PayloadError(f"{fault}: {len(data)} bytes follow the header, {expected} expected")
    parts, start = {}, 0
    for section in sections:
        parts[section.name] = data[start : start + section.nbytes]
        start += section.nbytes
    return sent_spec, manifest, _tensors(parts, parse_plan(sent_spec), manifest.num_elements)


def _judged(header: bytes, manifest: Manifest | None, spec: str | None) -> tuple[str, Manifest]:
    """Return spec and manifest that a header tells; PayloadError unless it is the one header that both have."""
    entries = read_header(header)
    sent_spec, layout = _read_metadata(entries.pop("__metadata__", None))
    _check_spec(sent_spec, spec)
    manifest = _checked_manifest(layout, manifest)
    _check_entries(entries, header_entries(parse_plan(sent_spec).sections(manifest.num_elements)))
    if header != header_bytes(sent_spec, manifest):
        raise PayloadError("the header is not in its canonical form (order, spaces, padding to 8 bytes)")
    return sent_spec, manifest


_judged_before = lru_cache(maxsize=32)(_judged)  # what raises is not kept


def _read_metadata(metadata: Any) -> tuple[str, str]:
    """Return (spec, layout) of the metadata, which has exactly its three keys, all strings."""
    if not isinstance(metadata, dict):
        raise PayloadError("the header has no __metadata__ object; this is no fedsynsam payload")
    version = metadata.get(VERSION_KEY)
    if version is None:
        raise PayloadError(f"the metadata has no {VERSION_KEY!r} (the format version); this is no fedsynsam payload")
    if version != VERSION:
        raise PayloadError(f"format version {str(version)[:40]!r} is not supported; this library reads {VERSION!r}")
    if unknown := sorted(set(metadata) - {VERSION_KEY, "spec", "layout"}):
        raise PayloadError(f"unknown metadata key {unknown[0][:80]!r}")
    for key in ("spec", "layout"):
        if not isinstance(metadata.get(key), str):
            raise PayloadError(f"the metadata must hold the string {key!r}")
    return metadata["spec"], metadata["layout"]


def _check_spec(sent: str, expected: str | None) -> None:
    if len(sent) > MAX_SPEC_LENGTH:
        raise PayloadError(f"the spec has {len(sent)} characters, at most {MAX_SPEC_LENGTH} are allowed")
    try:
        parse_plan(sent)
    except SpecError as error:
        raise PayloadError(f"unknown spec: {error}") from error
    if expected is not None and sent != expected:
        raise PayloadError(f"the payload has the spec {sent!r}, expected {expected!r}")


def _checked_manifest(layout: str, manifest: Manifest | None) -> Manifest:
    """Return the manifest of the payload, equal to the expected one if there is one."""
    if manifest is not None and manifest.layout == layout:
        return manifest
    try:
        sent = Manifest.from_layout(layout)
    except ArgumentError as error:
        raise PayloadError(f"layout: {error}") from error
    if manifest is not None:
        raise PayloadError(f"the layout differs from like=: {manifest.difference(sent)}")
    return sent


def _check_entries(entries: dict[str, Any], expected: dict[str, dict[str, Any]]) -> None:
    """Raise PayloadError unless the header lists exactly the tensors, types, shapes and offsets that are implied."""
    if missing := [name for name in expected if name not in entries]:
        raise PayloadError(f"tensor {missing[0]!r} is missing")
    if extra := [name for name in entries if name not in expected]:
        raise PayloadError(f"tensor {extra[0][:80]!r} is not expected; the spec implies {', '.join(expected)}")
    for name, right in expected.items():
        entry = entries[name]
        if not isinstance(entry, dict) or set(entry) != set(right):
            raise PayloadError(f"tensor {name!r} must have exactly the keys {', '.join(right)}")
        for key, value in right.items():
            if entry[key] != value:
                raise PayloadError(f"tensor {name!r} has {key} {str(entry[key])[:80]}, expected {value}")


def _tensors(parts: dict[str, memoryview], plan: Plan, n: int) -> dict[str, Tensor]:
    """Return the checked tensors of the sections' bytes, in memory of their own."""
    tensors: dict[str, Tensor] = {}
    if "indices" in parts:
        tensors["indices"] = _indices(_tensor(parts["indices"], "U32"), plan, n)
    if "values" in parts:
        tensors["values"] = _tensor(parts["values"], "F32")
        _refuse(checks.fault_of_values(tensors["values"]))
    if "codes" in parts:
        assert plan.bits is not None
        scales = _tensor(parts["scales"], "F32")
        _refuse(checks.fault_of_scales(scales))
        codes = _tensor(parts["codes"], "U8", plan.count_buckets(n) * plan.bucket_bytes)
        _refuse(checks.fault_of_codes(codes.numpy()[: len(parts["codes"])].data, plan.bits))
        _refuse(checks.fault_of_empty_codes(codes, scales, plan, n))
        tensors |= {"scales": scales, "codes": codes}
    return tensors


def _indices(words: Tensor, plan: Plan, n: int) -> Tensor:
    k = plan.count_sent(n)
    indices, valid = ops.decode_indices(words[None], n=n, k=k)
    if not valid.item():
        raise PayloadError(checks.fault_of_index_words(words.numpy(), n, k))
    if plan.chunk is not None:
        _refuse(checks.fault_of_chunks(indices[0], plan, n))
    return indices[0]


def _tensor(data: memoryview, dtype: str, length: int | None = None) -> Tensor:
    """Return a copy of the numbers in `data`, with zeros behind them up to `length`."""
    wire, memory = _DTYPES[dtype]
    numbers = np.frombuffer(data, wire)
    row = empty_row(len(numbers) if length is None else length, memory, torch.device("cpu"))
    row.numpy()[: len(numbers)] = numbers
    if len(numbers) < len(row):
        row[len(numbers) :] = 0
    return row


def _refuse(fault: str) -> None:
    if fault:
        raise PayloadError(fault)
