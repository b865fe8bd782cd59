"""Whatever a node replies: an error reply and a line in the log, or arrays like those sent and finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

pytest.importorskip("flwr.serverapp.strategy", reason="Flower is not installed; .ci/run has an environment with it")

from flower_nodes import Nodes, client_app, record
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as some

import fedsynsam as fs
from fedsynsam.integrations.flower import CompressedGrid, CompressionMod

SPEC = "topk:0.1+quantize:4"
MODEL = {"w": np.ones((20, 10), np.float32), "n": np.array([1, 2], np.int32), "on": np.array([True, False])}


def exchange(tamper: Callable[[RecordDict], object]) -> Message:
    """The reply that a strategy gets after a node has changed what it sends."""
    inner = Nodes([client_app(lambda a, m: a | {"w": a["w"] * np.float32(1.1)}, [CompressionMod(SPEC)])])

    def change(node: int, reply: Message) -> Message:
        tamper(reply.content)
        return reply

    inner.tamper = change
    content = RecordDict({"arrays": record(MODEL)})
    (reply,) = CompressedGrid(inner, SPEC).send_and_receive([Message(content, dst_node_id=11, message_type="train")])
    return reply


def check_legal(reply: Message) -> None:
    arrays = {name: array.numpy() for name, array in reply.content["arrays"].items()}
    assert list(arrays) == list(MODEL)
    for name, array in arrays.items():
        assert (array.shape, array.dtype) == (MODEL[name].shape, MODEL[name].dtype)
        assert np.isfinite(array).all()


def set_field(name: str, value: object) -> Callable[[RecordDict], object]:
    return lambda content: content["fedsynsam"].__setitem__(name, value)


def huge(content: RecordDict) -> None:
    """A legal payload whose sum with the model overflows float32."""
    update = {"w": torch.full((20, 10), 3.4e38)}
    compressor = fs.compressor(SPEC)
    content["fedsynsam"]["payload"] = compressor.compress(update, compressor.init(update), seed=0)[0].encode()


def dense(content: RecordDict) -> None:
    """More than was agreed."""
    update = {"w": torch.ones(20, 10)}
    compressor = fs.compressor("none")
    content["fedsynsam"]["payload"] = compressor.compress(update, compressor.init(update), seed=0)[0].encode()


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda content: content.pop("fedsynsam"), "the reply holds no payload"),
        (lambda content: content.clear(), "the reply holds no payload"),
        (lambda content: content["fedsynsam"].clear(), "the reply holds no payload"),
        (set_field("payload", "text"), "the reply holds no payload"),
        (set_field("payload", [b"x"]), "the reply holds no payload"),
        (set_field("payload", b""), "PayloadError"),
        (set_field("others", 5), "the reply holds no payload"),
        (set_field("others", b""), "the arrays beside the payload take 0 bytes, expected 10"),
        (set_field("others", bytes(11)), "the arrays beside the payload take 11 bytes, expected 10"),
        (set_field("others", bytes(8) + b"\x01\x02"), "array 'on' holds bytes that are neither true nor false"),
        (dense, "the payload has the spec 'none', expected"),
    ],
)  # fmt: skip
def test_what_is_refused(tamper: Callable[[RecordDict], object], message: str) -> None:
    reply = exchange(tamper)
    assert reply.has_error()
    assert reply.metadata.src_node_id == 11
    assert message in reply.error.reason


def test_an_overflow_is_refused() -> None:
    model = {"w": np.full((20, 10), 3e38, np.float32)}
    inner = Nodes([client_app(lambda a, m: a, [CompressionMod(SPEC)])])
    inner.tamper = lambda node, reply: huge(reply.content) or reply
    message = Message(RecordDict({"arrays": record(model)}), dst_node_id=11, message_type="train")
    (reply,) = CompressedGrid(inner, SPEC).send_and_receive([message])
    assert "array 'w' would hold NaN or infinity" in reply.error.reason


def test_records_of_ours_cannot_be_smuggled_past() -> None:
    """An ArrayRecord of the model's name in the reply is replaced by the decoded one; other records stay."""
    extra = {"arrays": ArrayRecord(), "more": ConfigRecord({"a": 1}), "metrics": MetricRecord({"num-examples": 3})}
    reply = exchange(lambda content: content.update(extra))
    check_legal(reply)
    assert set(reply.content) == {"arrays", "more", "metrics"}


class LastFirst(Nodes):
    """The node that was asked last answers first."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(message_ids)[::-1]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("claim", ["nothing", "another's", "another's, as an error"])
def test_a_node_answers_for_itself_alone(claim: str, apart: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The ids in a reply are what the node writes there."""
    inner = LastFirst([client_app(lambda a, m: a, [CompressionMod(SPEC)]) for _ in range(2)])
    asked = dict[int, Message]()

    def forge(node: int, reply: Message) -> Message:
        asked[node] = reply
        if node == 12:
            if claim == "another's, as an error":
                reply = Message(Error(0, "gone"), reply_to=inner.sent[0])
            else:
                reply.content["arrays"] = ArrayRecord({"w": Array(np.full((20, 10), np.nan, np.float32))})
            identifier = "made up" if claim == "nothing" else asked[11].metadata.reply_to_message_id
            reply.metadata.__dict__["_reply_to_message_id"] = identifier
        return reply

    inner.tamper = forge
    grid = CompressedGrid(inner, SPEC)
    content = RecordDict({"arrays": record(MODEL)})
    messages = [Message(content, dst_node_id=node, message_type="train") for node in (11, 12)]
    replies = grid.pull_messages(grid.push_messages(messages)) if apart else grid.send_and_receive(messages)
    (reply,) = replies
    assert reply.metadata.src_node_id == 11
    check_legal(reply)
    assert list(grid.payloads) == [11]
    assert "is left out: it answers nothing that the node was asked" in caplog.text


@settings(max_examples=150, deadline=None)
@given(some.data())
def test_flipped_bits(data: some.DataObject) -> None:
    def flip(content: RecordDict) -> None:
        field = data.draw(some.sampled_from(["payload", "others"]))
        blob = bytearray(content["fedsynsam"][field])
        for _ in range(data.draw(some.integers(1, 3))):
            blob[data.draw(some.integers(0, len(blob) - 1))] ^= 1 << data.draw(some.integers(0, 7))
        content["fedsynsam"][field] = bytes(blob)

    reply = exchange(flip)
    if not reply.has_error():
        check_legal(reply)


@settings(max_examples=60, deadline=None)
@given(some.binary(max_size=400), some.binary(max_size=12))
def test_any_bytes(payload: bytes, others: bytes) -> None:
    reply = exchange(lambda content: content["fedsynsam"].update({"payload": payload, "others": others}))
    assert reply.has_error()
