"""The server's side: a grid through which any strategy sends models and receives trained arrays, as without us."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from ...compress import Compressor, compressor
from ...errors import FedSynSamError, PayloadError
from ...wire import Payload
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
    passes_whole,
)

_REFUSED = 0  # Flower's ErrorCode.UNKNOWN
_log = logging.getLogger("flwr.fedsynsam")


@dataclass(frozen=True)
class _Sent:
    """A train message that waits for its reply, the model in it, and the lost replies that it told of."""

    message: Message
    reference: Reference
    told: list[str]

    @property
    def id(self) -> str:
        """The message's id, which it has once it was pushed."""
        return str(self.message.metadata.message_id)

    @property
    def node(self) -> int:
        """The node that it went to."""
        return int(self.message.metadata.dst_node_id)


class CompressedGrid(Grid):
    """Flower's grid with payloads on its wire: `strategy.start(CompressedGrid(grid, "topk:0.01"), ...)`.

        arrays of a reply = arrays sent to that node + decompress(payload)

    For every strategy and loop that sends and receives through a grid. A payload is decoded against the arrays that
    this server sent to the node and against `spec`; nothing in it is trusted. A reply that cannot be decoded becomes
    an error reply with a line in the log, as if the node had failed, and the others are aggregated. The node is told
    with the next message that its reply was lost, also if none came in time or its SuperNode was started again, and
    sends the content of that reply again. (Not so with push_messages and pull_messages: there a reply that is never
    pulled is waited for.) A reply to nothing that its node was asked is left out.

    grid: the one that Flower hands to the ServerApp. spec: the same as the clients' `CompressionMod`.
    arrayrecord_key: the record of the model (the strategy's). Messages other than `train` pass.

    Raises ArgumentError, when a train message is sent, if it has no such record, if an array is no number, and for
    protocols that compression would break (secure aggregation; clipping on the clients with a residual).
    """

    def __init__(self, grid: Grid, spec: str | Compressor, *, arrayrecord_key: str = "arrays") -> None:
        self._grid, self._key = grid, arrayrecord_key
        self._compressor = compressor(spec) if isinstance(spec, str) else spec
        self._sent: dict[str, _Sent] = {}  # by message id, until settled
        self._passing: set[str] = set()  # ids of pushed messages whose replies pass
        self._whole: dict[str, bool] = {}  # by array; as first seen, because averages turn whole numbers into floats
        self._lost: dict[int, list[str]] = {}  # by node: messages whose replies did not get through
        self._known: set[int] = set()  # nodes whose replies did
        self.payloads: dict[int, Payload] = {}
        """The payloads of the last exchange, by node id: what FedSynSAM learns from."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies, decoded; those that did not come in time are given up."""
        messages = list(messages)
        waiting = self._prepare(messages)
        try:
            replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        except BaseException:  # nodes may have answered: they are told, like those whose replies came too late
            for sent in waiting:
                if sent.id:
                    self._give_up(sent, None)
            raise
        self._sent |= {sent.id: sent for sent in waiting}
        settled = self._settle_all(replies, _others(messages, waiting))
        for sent in waiting:
            if self._sent.pop(sent.id, None) is not None:
                self._give_up(sent, "none came in time")
        return settled

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; the models that they hold are kept until their replies are pulled."""
        messages = list(messages)
        waiting = self._prepare(messages)
        identifiers = self._grid.push_messages(messages)
        self._sent |= {sent.id: sent for sent in waiting}
        self._passing |= _others(messages, waiting)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that there are, decoded."""
        replies = list(self._grid.pull_messages(message_ids))
        settled = self._settle_all(replies, self._passing)
        self._passing -= {reply.metadata.reply_to_message_id for reply in replies}
        return settled

    def set_run(self, run: Any) -> None:
        """As the grid within."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid within."""
        return self._grid.run

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        """As the grid within."""
        return self._grid.create_message(*arguments, **options)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid within."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """As the grid within."""
        return self._grid.get_nodes()

    def _prepare(self, messages: list[Message]) -> list[_Sent]:
        """Add our record to the train messages; nodes that are sent the same record share one Reference."""
        waiting, shared = list[_Sent](), dict[int, Reference]()
        for message in messages:
            if not (is_train(message) and message.has_content()):
                continue
            content = message.content
            check_company(content, self._compressor)
            record = arrays_of(content, self._key, "the strategy's message")
            if id(record) not in shared:
                shared[id(record)] = self._reference(numpy_of(record))
            reference = shared[id(record)]
            told = self._lost_for(message.metadata.dst_node_id)
            # nothing empty: Flower's size mods cannot count that
            names = {key: list(names) for key, names in ((LOST, told), (WHOLE, reference.others)) if names}
            control = ConfigRecord({SPEC: str(self._compressor), **names})
            message.content = RecordDict({**content, RECORD: control})  # the strategy's messages may share theirs
            waiting.append(_Sent(message, reference, told))
        return waiting

    def _lost_for(self, node: int) -> list[str]:
        """What a node must be told. A new one may be an old one that was started again: it gets to know everything."""
        if node in self._known:
            return list(self._lost.get(node, []))
        return [identifier for identifiers in self._lost.values() for identifier in identifiers]

    def _reference(self, arrays: dict[str, np.ndarray]) -> Reference:
        for name, array in arrays.items():
            self._whole.setdefault(name, passes_whole(array))
        return Reference(arrays, self._key, [name for name in arrays if self._whole[name]])

    def _settle_all(self, replies: list[Message], passing: set[str]) -> list[Message]:
        """Return the replies as the strategy wants them, without those to nothing that their node was asked.

        The ids in a reply are its node's word. An error may come from Flower itself, in the place of a reply.
        """
        self.payloads = {}
        answered = {reply.metadata.reply_to_message_id for reply in replies if self._is_answer(reply)}
        settled = []
        for reply in replies:
            asked = reply.metadata.reply_to_message_id
            sent = self._sent.get(asked)
            if sent is not None and (self._is_answer(reply) or (reply.has_error() and asked not in answered)):
                del self._sent[asked]
                settled.append(self._settle(sent, reply))
            elif asked in passing:
                settled.append(reply)
            else:
                node = reply.metadata.src_node_id
                _log.warning("a reply of node %d is left out: it answers nothing that the node was asked", node)
        return settled

    def _is_answer(self, reply: Message) -> bool:
        """Whether it has content, and answers a train message to the node that it says to come from."""
        sent = self._sent.get(reply.metadata.reply_to_message_id)
        return sent is not None and not reply.has_error() and sent.node == reply.metadata.src_node_id

    def _settle(self, sent: _Sent, reply: Message) -> Message:
        if reply.has_error():  # Flower's strategies log it
            self._give_up(sent, None)
            return reply
        try:
            payload, others = self._decode(reply.content, sent.reference)
            arrays = sent.reference.apply(payload.decompress(), others)  # type: ignore[arg-type]
        except FedSynSamError as error:
            reason = f"{type(error).__name__}: {error}"
            self._give_up(sent, reason)
            return Message(Error(_REFUSED, reason), reply_to=sent.message)
        self._accept(sent)
        self.payloads[sent.node] = payload
        kept = {name: record for name, record in reply.content.items() if name not in (RECORD, self._key)}
        return Message(RecordDict({self._key: arrays, **kept}), reply_to=sent.message)  # ids are ours, not the node's

    def _decode(self, content: RecordDict, reference: Reference) -> tuple[Payload, bytes]:
        record = content.config_records.get(RECORD, {})
        payload, others = record.get(PAYLOAD), record.get(OTHERS, b"")
        if not isinstance(payload, bytes) or not isinstance(others, bytes):
            raise PayloadError("the reply holds no payload; is CompressionMod the first of the ClientApp's mods?")
        return Payload.decode(payload, like=reference.manifest, spec=self._compressor), others

    def _accept(self, sent: _Sent) -> None:
        """The node has read the message, and with it what was announced as lost."""
        self._known.add(sent.node)
        left = [identifier for identifier in self._lost.pop(sent.node, []) if identifier not in sent.told]
        if left:
            self._lost[sent.node] = left

    def _give_up(self, sent: _Sent, reason: str | None) -> None:
        self._lost.setdefault(sent.node, []).append(sent.id)
        if reason is not None:
            _log.warning("the reply of node %d is left out: %s", sent.node, reason)


def _others(messages: list[Message], waiting: list[_Sent]) -> set[str]:
    """The ids of the messages, once they are pushed, that are not among those that wait."""
    return {str(message.metadata.message_id) for message in messages} - {sent.id for sent in waiting}
