"""What travels: the records beside the user's own, and the way between a model's arrays and an update.

Server to client: the model as Flower sends it, and a ConfigRecord `fedsynsam` with the `spec`, with `lost`, the ids of
messages whose replies did not get through, and with `whole`, the names of the arrays that are not compressed.
Client to server: in the place of the ArrayRecord a ConfigRecord `fedsynsam` with the `payload`, and `others`, the raw
bytes of the arrays that are not compressed. One record, because Flower moves every record, array and chunk of an
array as an object of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from torch import Tensor

from ...compress import ChunkTopK, Compressor, Identity, TopK
from ...errors import ArgumentError, PayloadError
from ...wire import Manifest

RECORD = "fedsynsam"
SPEC, LOST, WHOLE = "spec", "lost", "whole"
PAYLOAD, OTHERS = "payload", "others"

_SECURE_AGGREGATION = "secaggplus_configs"  # Flower's record of the SecAgg+ protocol
_CLIPPING_NORM = "clipping_norm"  # what Flower's client-side clipping strategies put into a config


def passes_whole(array: np.ndarray) -> bool:
    """Whether an array is sent as it is: whole numbers, truth values, and single numbers without a dimension.

    Those are counters as a rule (BatchNorm's, say), whose steps would drown the updates of the weights.
    """
    return array.dtype.kind != "f" or array.ndim == 0


class Reference:
    """A model as the server sent it. Both sides have it: updates are differences to it, and it fixes every size.

    arrays: by name, in the record's order; key: the record's name, for errors; whole: the arrays that are sent as they
    are, all others are compressed. Raises ArgumentError naming an array that cannot travel.
    """

    def __init__(self, arrays: dict[str, np.ndarray], key: str, whole: Collection[str]) -> None:
        self.arrays = arrays
        self.others = [name for name in arrays if name in whole]
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
                raise ArgumentError(f"array {name!r} of {key!r} is {array.dtype}; expected floating-point or whole "
                                    "numbers of at most 64 bits")  # fmt: skip
        floats = [(name, array.shape) for name, array in arrays.items() if name not in whole]
        if not floats:
            raise ArgumentError(f"{key!r} holds no floating-point array; there is nothing to compress")
        self.manifest = Manifest(tuple(floats))

    def update(self, trained: ArrayRecord) -> tuple[dict[str, Tensor], bytes]:
        """Return trained − received as float32 tensors by name, and the bytes of the other arrays.

        The difference is taken in the wider of float32 and the array's dtype. Raises ArgumentError naming an array
        that is missing, unexpected, or of another shape or kind than the one received.
        """
        if missing := [name for name in self.arrays if name not in trained]:
            raise ArgumentError(f"the reply lacks array {missing[0]!r}, which the server sent")
        if extra := [name for name in trained if name not in self.arrays]:
            raise ArgumentError(f"the reply holds array {extra[0]!r}, which the server did not send")
        update, others = {}, []
        for name, received in self.arrays.items():
            array = trained[name].numpy()
            if array.shape != received.shape:
                raise ArgumentError(f"array {name!r} of the reply has the shape {list(array.shape)}, "
                                    f"the server sent {list(received.shape)}")  # fmt: skip
            if not np.can_cast(array.dtype, received.dtype, "same_kind"):
                raise ArgumentError(f"array {name!r} of the reply is {array.dtype}, the server sent {received.dtype}")
            if name in self.others:
                others.append(array.astype(received.dtype).tobytes())
            else:
                with np.errstate(over="ignore"):  # an infinity is found, and named, by the compressor
                    wide = np.subtract(array, received, dtype=np.result_type(received, np.float32))
                    update[name] = torch.from_numpy(np.asarray(wide, dtype=np.float32, order="C"))
        return update, b"".join(others)

    def apply(self, update: Mapping[str, Tensor], others: bytes) -> ArrayRecord:
        """Return the arrays that the sender of `update` and `others` had, as Flower's strategies want them.

        Raises PayloadError if `others` has another length than it must have or holds what is no number of its kind,
        or if an array would not be finite.
        """
        expected = sum(self.arrays[name].nbytes for name in self.others)
        if len(others) != expected:
            raise PayloadError(f"the arrays beside the payload take {len(others)} bytes, expected {expected}")
        result, start = ArrayRecord(), 0
        for name, received in self.arrays.items():
            if name in update:
                with np.errstate(over="ignore"):
                    array = (received + update[name].numpy()).astype(received.dtype)
            else:
                part = others[start : start + received.nbytes]
                start += received.nbytes
                if received.dtype.kind == "b" and part.translate(None, b"\x00\x01"):
                    raise PayloadError(f"array {name!r} holds bytes that are neither true nor false")
                array = np.frombuffer(part, dtype=received.dtype).reshape(received.shape)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise PayloadError(f"array {name!r} would hold NaN or infinity")
            result[name] = Array(array)
        return result


def is_train(message: Message) -> bool:
    """Whether a message asks for training, or answers such a message."""
    return bool(message.metadata.message_type.split(".")[0] == MessageType.TRAIN)


def numpy_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Return the arrays of a record by name."""
    return {name: array.numpy() for name, array in record.items()}


def arrays_of(content: RecordDict, key: str, whose: str) -> ArrayRecord:
    """Return the ArrayRecord `key`; ArgumentError naming those that there are."""
    if key not in content.array_records:
        found = ", ".join(map(repr, content.array_records)) or "none"
        raise ArgumentError(f"{whose} holds no ArrayRecord {key!r} (found: {found}); name it with arrayrecord_key=")
    return content.array_records[key]


def check_company(content: RecordDict, compressor: Compressor) -> None:
    """Raise ArgumentError if a train message belongs to a protocol that compression would silently break."""
    records = content.config_records
    if _SECURE_AGGREGATION in records:
        raise ArgumentError("secure aggregation adds up masked dense vectors, and a payload cannot be added up before "
                            "it is decoded; take out either the SecAgg workflow or the compression")  # fmt: skip
    if any(_CLIPPING_NORM in record for record in records.values()) and not _keeps_norms(compressor):
        raise ArgumentError(f"with clipping on the clients, {str(compressor)!r} may send more than the clipping norm "
                            "(a residual adds former updates, quantization rounds up), and the noise would be too "
                            "small; clip on the server, or use 'none' or 'topk:DENSITY[residual=false]'")  # fmt: skip


def _keeps_norms(compressor: Compressor) -> bool:
    """Whether no payload's norm can exceed its update's."""
    return isinstance(compressor, (Identity, TopK, ChunkTopK)) and not compressor.residual
