"""The client's side: a mod that sends the update as a payload in the place of the trained arrays."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from ...compress import Compressor, compressor
from ...errors import ArgumentError
from ...ops.seeds import row_seed
from .memory import Place, node_number
from .records import (
    LOST,
    OTHERS,
    PAYLOAD,
    RECORD,
    SPEC,
    WHOLE,
    Reference,
    arrays_of,
    check_company,
    is_train,
    numpy_of,
)

_log = logging.getLogger("flwr.fedsynsam")


class CompressionMod:
    """Compresses what a ClientApp sends back: `ClientApp(mods=[CompressionMod("topk:0.01")])`.

        payload = C(trained − received + residual)        residual ← trained − received + residual − payload

    It must be the first in `mods`, so that it acts last on the reply; mods that clip or add noise come after it. The
    server reads the replies through a `CompressedGrid` of the same spec. Messages other than `train` pass.

    spec: string or compressor. folder: where the residual outlives the SuperNode's process (see `Place`); without it,
    and without `fedsynsam-folder` in the node's configuration, Flower's `context.state` keeps it. seed: mixed with the
    node's number, for stochastic rounding. carry_over: go on from the residual that another run left in the folder.
    arrayrecord_key: the record of the model, in the message and in the reply.

    If the server says that a former reply did not get through, what it held is sent again as part of the residual.

    Raises, in the node (the reply then counts as failed): ArgumentError for arrays that do not fit those received, for
    a server without `CompressedGrid` or with another spec, and for protocols that compression would break;
    NonFiniteError for NaN or infinity in the update; StateError for a memory that cannot be used.
    """

    def __init__(
        self,
        spec: str | Compressor,
        folder: str | Path | None = None,
        *,
        seed: int = 0,
        carry_over: bool = False,
        arrayrecord_key: str = "arrays",
    ) -> None:
        self._compressor = compressor(spec) if isinstance(spec, str) else spec
        self._folder, self._seed, self._carry_over, self._key = folder, seed, carry_over, arrayrecord_key

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Let the app train, and replace the arrays of its reply; Flower calls this."""
        if not is_train(message):
            return call_next(message, context)
        content = message.content
        check_company(content, self._compressor)
        lost, whole = self._read_control(content)
        received = arrays_of(content, self._key, "the server's message")
        reference = Reference(numpy_of(received), self._key, whole)
        place = Place(context, self._folder, message.metadata.run_id, self._carry_over)
        message.content = RecordDict({name: record for name, record in content.items() if name != RECORD})
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        update, others = reference.update(arrays_of(reply.content, self._key, "the reply"))
        memory = place.load(self._compressor.init(update))
        if memory.restore_lost(lost):
            _log.info("the last reply was lost; what it held goes back into the residual")
        payload, memory.state = self._compressor.compress(update, memory.state, seed=self._node_seed(context))
        memory.pending, memory.replied_to = payload.encode(), message.metadata.message_id
        place.save(memory)
        sent = ConfigRecord({PAYLOAD: memory.pending, **({OTHERS: others} if others else {})})
        kept = {name: record for name, record in reply.content.items() if name != self._key}
        reply.content = RecordDict({RECORD: sent, **kept})
        return reply

    def _read_control(self, content: RecordDict) -> tuple[list[str], list[str]]:
        """Return the ids of the messages whose replies are lost, and the names of the arrays that are sent whole."""
        if RECORD not in content.config_records:
            raise ArgumentError("the server does not decode payloads: give its strategy a CompressedGrid(grid, "
                                f"{str(self._compressor)!r}) in the place of its grid")  # fmt: skip
        control = content.config_records[RECORD]
        if control.get(SPEC) != str(self._compressor):
            raise ArgumentError(f"the server expects {control.get(SPEC)!r}, this node compresses with "
                                f"{str(self._compressor)!r}; both must name the same spec")  # fmt: skip
        return control.get(LOST, []), control.get(WHOLE, [])

    def _node_seed(self, context: Context) -> int:
        number = node_number(context)
        return row_seed(self._seed, 0, context.node_id if number is None else number)
