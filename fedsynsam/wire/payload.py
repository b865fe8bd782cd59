"""The compressed form of one update, and its way to bytes and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .container import VERSION, header_bytes
from .decoding import decode_tensors
from .manifest import Like, Manifest
from .plan import Plan, parse_plan
from .spec import parse, spell

_PART = 1 << 18  # a multiple of every bucket, which are powers of two up to 2^16


class SectionInfo(NamedTuple):
    """One part of a payload's bytes: a tensor, or the `container` (dtype `json`) around them."""

    name: str
    dtype: str
    nbytes: int
    bits_per_value: float
    """Bits of this section for each value sent (0 if none is)."""


@dataclass(frozen=True)
class PayloadInfo:
    """What a payload says of itself: `num_sent` of `num_elements` values, in `wire_bytes` bytes."""

    version: str
    spec: str
    manifest: Manifest
    num_elements: int
    num_sent: int
    wire_bytes: int
    sections: tuple[SectionInfo, ...]


@dataclass(frozen=True, eq=False)
class Payload:
    """A compressed update: what of it crosses the network.

    Made by `Compressor.compress` or `Payload.decode`, not by hand. `tensors` holds, on one device,
    `indices` int32 [k] ascending (sparse specs), and `values` f32 [k], or `codes` uint8 (whole buckets) and
    `scales` f32 (quantized specs).
    """

    spec: str
    """The canonical spec string of the compressor."""
    manifest: Manifest
    """Names and shapes of the update's tensors."""
    tensors: Mapping[str, Tensor]
    _measured: dict[str, int] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "tensors": {name: own_memory(tensor) for name, tensor in self.tensors.items()}}

    @cached_property
    def plan(self) -> Plan:
        """The parameters of the spec that decide the bytes."""
        return parse_plan(self.spec)

    @property
    def num_elements(self) -> int:
        """Elements of the update, sent or not."""
        return self.manifest.num_elements

    @property
    def num_sent(self) -> int:
        """Elements of the update that the payload carries."""
        return self.plan.count_sent(self.num_elements)

    @property
    def wire_bytes(self) -> int:
        """Length of the encoded payload in bytes, measured on the encoding."""
        if "wire_bytes" not in self._measured:
            self.encode()
        return self._measured["wire_bytes"]

    def encode(self) -> bytes:
        """Return the payload's bytes: a safetensors file, the same on every backend (`docs/wire-format.md`)."""
        sections = [self._section(section.name) for section in self.plan.sections(self.num_elements)]
        blob = b"".join([header_bytes(self.spec, self.manifest), *sections])
        self._measured["wire_bytes"] = len(blob)
        return blob

    @classmethod
    def decode(cls, blob: bytes | bytearray | memoryview, like: Like, spec: object | None = None) -> Payload:
        """Return the payload that `blob` encodes, for an update like `like`.

        `like` (an update, a module, whose parameters are meant, or a Manifest) must have the names and shapes of the
        sender's update in the same order; it fixes every size, so that a payload from an untrusted sender can neither
        crash the receiver nor make it allocate more than `like` implies. The tensors go to the device of `like`'s
        tensors. `spec`, a spec string or a compressor, demands that the sender used this one.

        Raises PayloadError naming what is wrong; what is returned is legal throughout (finite, in range, and
        encodes to the same bytes). ArgumentError for a wrong `like` or type of `blob`, SpecError for a wrong `spec`.
        """
        expected = None if spec is None else spell(parse(str(spec)))
        manifest = Manifest.of(like)
        device = manifest.device_of(like)
        sent_spec, manifest, tensors = decode_tensors(blob, manifest, expected)
        if device.type != "cpu":
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return cls(sent_spec, manifest, tensors, {"wire_bytes": memoryview(blob).nbytes})

    @staticmethod
    def inspect(blob: bytes | bytearray | memoryview) -> PayloadInfo:
        """Return what a payload of unknown origin says of itself, as strictly checked as by `decode`.

        The layout comes from the payload itself; what is allocated is in proportion to the blob: 3 times its bytes and
        4 bytes for each index, of which up to four come in a byte.
        Raises PayloadError naming what is wrong.
        """
        spec, manifest, tensors = decode_tensors(blob, None, None)
        payload = Payload(spec, manifest, tensors, {"wire_bytes": memoryview(blob).nbytes})
        return PayloadInfo(VERSION, spec, manifest, payload.num_elements, payload.num_sent, payload.wire_bytes,
                           tuple(payload.sections()))  # fmt: skip

    def sections(self) -> list[SectionInfo]:
        """Return the parts of the encoded payload in the order of its bytes; their sizes add up to `wire_bytes`."""
        sizes = [("container", "json", len(header_bytes(self.spec, self.manifest)))]
        sizes += [(s.name, s.dtype, s.nbytes) for s in self.plan.sections(self.num_elements)]
        sent = self.num_sent
        return [SectionInfo(name, dtype, size, 8 * size / sent if sent else 0.0) for name, dtype, size in sizes]

    def sent_parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices int32, values float32) of a sparse payload, at most 2^18 of them at a time.

        So that neither 64-bit indices nor dequantized values are ever there for the whole payload.
        """
        for start in range(0, self.num_sent, _PART):
            stop = min(start + _PART, self.num_sent)
            yield self.tensors["indices"][start:stop], self._values_between(start, stop)

    def _values_between(self, start: int, stop: int) -> Tensor:
        """Values sent, dequantized; `start` is the first of a bucket."""
        plan = self.plan
        if plan.bits is None:
            return self.tensors["values"][start:stop]
        first, behind = start // plan.bucket, -(-stop // plan.bucket)
        codes = self.tensors["codes"][None, first * plan.bucket_bytes : behind * plan.bucket_bytes]
        scales = self.tensors["scales"][None, first:behind]
        return ops.dequantize(codes, scales, n=stop - start, bits=plan.bits, bucket=plan.bucket)[0]

    def decompress(self) -> Tensor | dict[str, Tensor]:
        """Return the float32 approximation of the update, in its structure: what was not sent is 0.

        The tensors of a dict are views of one flat buffer.
        """
        if self.plan.sparse:
            row = self.tensors["indices"].new_zeros(self.num_elements, dtype=torch.float32)
            for indices, values in self.sent_parts():
                row.index_copy_(0, indices.long(), values)
        else:
            row = self._values_between(0, self.num_sent)
            row = row.clone() if self.plan.bits is None else row  # else it was made here
        return self.manifest.split(row)

    def _section(self, name: str) -> memoryview:
        """The bytes of a section, where possible in the tensor's own memory."""
        tensor = self.tensors[name]
        if name == "indices":
            tensor = ops.encode_indices(tensor[None], n=self.num_elements)[0]
        array = tensor.cpu().numpy()
        if name == "codes":
            array = array[: self.plan.code_bytes(self.num_elements)]
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data


def own_memory(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if its memory holds more: pickling a row would take those of other senders along."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
