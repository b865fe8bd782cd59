"""The container of a payload: a safetensors file with one canonical header for each spec and manifest.

    u64 little-endian length of the header · header (JSON, padded with spaces to a multiple of 8) · tensor bytes

`read_header` turns hostile bytes into a plain dict; every judgement of its content is made by the decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NoReturn

from ..errors import PayloadError
from .manifest import Manifest
from .plan import Section, parse_plan

VERSION = "1"
VERSION_KEY = "fedsynsam"
MAX_HEADER_LENGTH = 2**20
_LENGTH_BYTES = 8
LONGEST_CACHED = 2**14  # of the headers and layouts that are kept
_SPARE_HEADER = 1024  # more than a header can hold beside its layout: keys, spec (≤ 256) and three tensor entries


def header_entries(sections: Iterable[Section]) -> dict[str, dict[str, Any]]:
    """Return the header's entry of each section, with offsets counted from the end of the header."""
    entries, start = {}, 0
    for section in sections:
        stop = start + section.nbytes
        entries[section.name] = {"dtype": section.dtype, "shape": [section.count], "data_offsets": [start, stop]}
        start = stop
    return entries


def header_bytes(spec: str, manifest: Manifest) -> bytes:
    """Return the canonical header, its length included, of a payload with this spec and manifest."""
    # Long layouts are not kept: they may come from anyone, by way of `inspect`.
    build = _cached_header if len(manifest.layout) <= LONGEST_CACHED else _build_header
    return build(spec, manifest)


def _build_header(spec: str, manifest: Manifest) -> bytes:
    metadata = {VERSION_KEY: VERSION, "layout": manifest.layout, "spec": spec}
    entries = header_entries(parse_plan(spec).sections(manifest.num_elements))
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


_cached_header = lru_cache(maxsize=32)(_build_header)


def header_limit(manifest: Manifest | None) -> int:
    """Return the longest header to accept where `manifest` (None: any) is expected."""
    if manifest is None:
        return MAX_HEADER_LENGTH
    return min(MAX_HEADER_LENGTH, len(manifest.layout) + _SPARE_HEADER)


def split_header(blob: memoryview, limit: int) -> tuple[memoryview, memoryview]:
    """Return (header with its length, tensor bytes); PayloadError if the blob is cut or the header too long."""
    if len(blob) < _LENGTH_BYTES:
        raise PayloadError(f"the payload has {len(blob)} bytes; the length of its header alone takes {_LENGTH_BYTES}")
    length = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    if length > limit:
        raise PayloadError(f"header too long: {length} bytes announced, at most {limit} expected here")
    if length > len(blob) - _LENGTH_BYTES:
        raise PayloadError(f"cut off inside the header: {length} bytes announced, "
                           f"{len(blob) - _LENGTH_BYTES} present")  # fmt: skip
    stop = _LENGTH_BYTES + length
    return blob[:stop], blob[stop:]


def read_header(header: bytes) -> dict[str, Any]:
    """Return the JSON object of a header (with its length in front); PayloadError for anything else."""
    try:
        text = str(header[_LENGTH_BYTES:], "ascii")
        content = json.loads(text, object_pairs_hook=_unique, parse_float=_reject, parse_constant=_reject,
                             parse_int=_parse_size)  # fmt: skip
    except PayloadError:
        raise
    except (ValueError, RecursionError) as error:  # covers UnicodeDecodeError and JSONDecodeError
        raise PayloadError(f"the header is not JSON in ASCII: {error}") from error
    if not isinstance(content, dict):
        raise PayloadError(f"the header must be a JSON object, not {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise PayloadError(f"duplicate key {twice[:80]!r} in the header")
    return result


def _reject(text: str) -> NoReturn:
    raise PayloadError(f"the header holds the number {text[:40]!r}; only whole numbers may appear")


def _parse_size(text: str) -> int:
    if len(text) > 19:
        raise PayloadError(f"the header holds a number of {len(text)} digits; sizes fit in 63 bits")
    return int(text)
