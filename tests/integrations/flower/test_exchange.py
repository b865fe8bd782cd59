"""Mod and grid together: what arrives, what is kept, and what happens when something does not arrive."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("flwr.serverapp.strategy", reason="Flower is not installed; .ci/run has an environment with it")

from flower_nodes import Nodes, arrays_of, client_app, record
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg

import fedsynsam as fs
from fedsynsam.integrations.flower import CompressedGrid, CompressionMod
from fedsynsam.integrations.flower.memory import Place, node_number

RNG = np.random.default_rng(0)
MODEL = {
    "weight": RNG.standard_normal((30, 20)).astype(np.float32),
    "half": RNG.standard_normal(50).astype(np.float16),
    "double": RNG.standard_normal((4, 5)),
    "steps": np.array(3, dtype=np.int64),
    "mask": np.array([True, False, True]),
    "scale": np.array(1.5, dtype=np.float32),  # no dimension: passes as it is
}


FIRST, SECOND = 11, 12  # node ids


def moved(arrays: dict[str, np.ndarray], seed: int, by: float = 0.01) -> dict[str, np.ndarray]:
    """The arrays after some training."""
    rng = np.random.default_rng(seed)
    result = {name: (a + by * rng.standard_normal(a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a
              for name, a in arrays.items()}  # fmt: skip
    return result | {name: a + 7 if a.dtype.kind == "i" else ~a for name, a in result.items() if a.dtype.kind in "ib"}


def nodes(spec: str, count: int = 2, folder: Path | None = None, **options: object) -> Nodes:
    """Nodes whose training depends on the node and on what it received."""
    apps = [
        client_app(lambda a, m, n=n: moved(a, seed=100 * n + int(m.content["config"]["server-round"])),
                   [CompressionMod(spec, **options)], examples=10 * (n + 1))
        for n in range(count)
    ]  # fmt: skip
    return Nodes(apps, folder)


def ask(grid: CompressedGrid, model: dict[str, np.ndarray], nodes: list[int], number: int = 1) -> list[Message]:
    """One round's replies."""
    content = RecordDict({"arrays": record(model), "config": ConfigRecord({"server-round": number})})
    messages = [Message(content, dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]
    return list(grid.send_and_receive(messages, timeout=10.0))


def exact(model: dict[str, np.ndarray], node: int, number: int) -> dict[str, np.ndarray]:
    return moved(model, seed=100 * (node - FIRST) + number)


def test_without_loss_the_strategy_gets_what_the_client_had() -> None:
    grid = CompressedGrid(nodes("none"), "none")
    for reply, node in zip(ask(grid, MODEL, [FIRST, SECOND]), (FIRST, SECOND), strict=True):
        assert list(reply.content) == ["arrays", "metrics"]
        arrays, right = arrays_of(reply.content["arrays"]), exact(MODEL, node, 1)
        assert list(arrays) == list(MODEL)
        for name, array in arrays.items():
            assert array.dtype == MODEL[name].dtype, name
            assert array.shape == MODEL[name].shape, name
            # w + (w' - w) in float32 misses w' by an ulp of the larger of the two
            tolerance = {"f": 2.0**-10 if array.dtype == np.float16 else 2.0**-22}.get(array.dtype.kind, 0.0)
            np.testing.assert_allclose(array, right[name], rtol=0, atol=4 * tolerance, err_msg=name)
        assert int(reply.content["metrics"]["num-examples"]) == 10 * (node - 10)


def test_the_wire_carries_one_record_in_the_place_of_the_arrays() -> None:
    inner = nodes("topk:0.01+quantize:4")
    ask(CompressedGrid(inner, "topk:0.01+quantize:4"), MODEL, [FIRST])
    (reply,) = inner.replies
    assert {name: type(r).__name__ for name, r in reply.content.items()} == {
        "fedsynsam": "ConfigRecord", "metrics": "MetricRecord"
    }  # fmt: skip
    carried = reply.content["fedsynsam"]
    assert set(carried) == {"payload", "others"}
    manifest = fs.Manifest((("weight", (30, 20)), ("half", (50,)), ("double", (4, 5))))
    assert fs.Payload.decode(carried["payload"], like=manifest, spec="topk:0.01+quantize:4").num_sent == 7
    assert len(carried["others"]) == 8 + 3 + 4


def total_update(rounds: int, node: int) -> np.ndarray:
    deltas = [exact(MODEL, node, number)["weight"] - MODEL["weight"] for number in range(1, rounds + 1)]
    return np.sum(deltas, axis=0, dtype=np.float64)


def received_update(replies: list[Message]) -> np.ndarray:
    updates = [arrays_of(reply.content["arrays"])["weight"] - MODEL["weight"] for reply in replies]
    return np.sum(updates, axis=0, dtype=np.float64)


def assert_nothing_lost(replies: list[Message], inner: Nodes, spec: str, expected: np.ndarray) -> None:
    np.testing.assert_allclose(received_update(replies) + kept(inner, FIRST, spec), expected, rtol=0, atol=1e-5)


def kept(inner: Nodes, node: int, spec: str) -> np.ndarray:
    """The residual of `weight` that a node keeps, read through a message that changes nothing."""
    from fedsynsam.integrations.flower.memory import Place

    manifest = fs.Manifest((("weight", (30, 20)), ("half", (50,)), ("double", (4, 5))))
    state = Place(inner.contexts[node], None, 77, False).load(fs.compressor(spec).init(manifest)).state
    return state.state_dict()["residual/weight"].numpy().astype(np.float64)


@pytest.mark.parametrize("spec", ["topk:0.05", "chunktopk:0.05[chunk=256]", "topk:0.1+quantize:4"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["context", "folder"])
def test_what_was_sent_and_what_is_kept_is_all_there_was(spec: str, on_disk: bool, tmp_path: Path) -> None:
    """Also when nodes sit out rounds, and are started again between (with a folder)."""
    inner = nodes(spec, folder=tmp_path if on_disk else None)
    grid = CompressedGrid(inner, spec)
    replies = []
    for number in range(1, 6):
        if number != 3:  # node 1 is not asked
            (reply,) = ask(grid, MODEL, [FIRST], number)
            replies.append(reply)
        if on_disk:
            inner.restart(FIRST)
        ask(grid, MODEL, [SECOND], number)
    expected = total_update(5, FIRST) - (exact(MODEL, FIRST, 3)["weight"] - MODEL["weight"])
    assert_nothing_lost(replies, inner, spec, expected)
    assert np.abs(kept(inner, FIRST, spec)).max() > 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == (["node-0.safetensors", "node-1.safetensors"] * on_disk)


def test_without_a_folder_a_restart_begins_anew() -> None:
    inner = nodes("topk:0.05")
    grid = CompressedGrid(inner, "topk:0.05")
    ask(grid, MODEL, [FIRST], 1)
    inner.restart(FIRST)
    (reply,) = ask(grid, MODEL, [FIRST], 2)
    expected = exact(MODEL, FIRST, 2)["weight"] - MODEL["weight"]
    assert_nothing_lost([reply], inner, "topk:0.05", expected)


@pytest.mark.parametrize("how", ["lost", "refused", "error"])
@pytest.mark.parametrize("spec", ["topk:0.05", "topk:0.1+quantize:4"])
def test_a_reply_that_does_not_get_through_is_sent_again(how: str, spec: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = nodes(spec)
    grid = CompressedGrid(inner, spec)
    replies = ask(grid, MODEL, [FIRST], 1)

    def tamper(node: int, reply: Message) -> Message | None:
        if how == "lost":
            return None
        if how == "refused":
            reply.content["fedsynsam"]["payload"] = b"nonsense"
            return reply
        from flwr.app import Error

        return Message(Error(0, "unplugged"), reply_to=inner.sent[-1])

    inner.tamper = tamper
    with caplog.at_level(logging.WARNING, "flwr.fedsynsam"):
        failed = ask(grid, MODEL, [FIRST], 2)
    assert all(reply.has_error() for reply in failed)
    assert len(failed) == (how != "lost")
    if how != "error":
        assert "the reply of node 11 is left out: " in caplog.text
    inner.tamper = lambda node, reply: reply
    replies += ask(grid, MODEL, [FIRST], 3)
    assert len(inner.sent[-1].content["fedsynsam"]["lost"]) == 1
    assert_nothing_lost(replies, inner, spec, total_update(3, FIRST))
    replies += ask(grid, MODEL, [FIRST], 4)
    assert "lost" not in inner.sent[-1].content["fedsynsam"]
    assert_nothing_lost(replies, inner, spec, total_update(4, FIRST))


def test_a_grid_that_raises_after_the_nodes_answered_loses_nothing() -> None:
    inner = nodes("topk:0.05")
    grid = CompressedGrid(inner, "topk:0.05")
    replies = ask(grid, MODEL, [FIRST], 1)

    def broken(node: int, reply: Message) -> Message:
        raise ConnectionError("the link broke")

    inner.tamper = broken
    with pytest.raises(ConnectionError):
        ask(grid, MODEL, [FIRST], 2)
    inner.tamper = lambda node, reply: reply
    replies += ask(grid, MODEL, [FIRST], 3)
    assert_nothing_lost(replies, inner, "topk:0.05", total_update(3, FIRST))


def test_a_message_that_never_arrived_does_not_hide_the_loss_before_it() -> None:
    """The reply to round 2 is lost; so is the message of round 3, which told of it; round 4 tells again."""
    inner = nodes("topk:0.05")
    grid = CompressedGrid(inner, "topk:0.05")
    replies = ask(grid, MODEL, [FIRST], 1)
    inner.tamper = lambda node, reply: None
    ask(grid, MODEL, [FIRST], 2)
    before = inner.contexts[FIRST]
    ask(grid, MODEL, [FIRST], 3)
    inner.contexts[FIRST] = before  # as if the node had never seen it
    inner.tamper = lambda node, reply: reply
    replies += ask(grid, MODEL, [FIRST], 4)
    expected = total_update(4, FIRST) - (exact(MODEL, FIRST, 3)["weight"] - MODEL["weight"])
    assert_nothing_lost(replies, inner, "topk:0.05", expected)


def test_a_node_that_comes_back_under_another_id_is_told_too(tmp_path: Path) -> None:
    """Its SuperNode was killed after the memory was written and before the reply left."""
    inner = nodes("topk:0.05", folder=tmp_path)
    grid = CompressedGrid(inner, "topk:0.05")
    replies = ask(grid, MODEL, [FIRST], 1)
    inner.tamper = lambda node, reply: None
    ask(grid, MODEL, [FIRST], 2)
    inner.tamper = lambda node, reply: reply
    inner.restart(FIRST)
    inner.apps[99], inner.contexts[99] = inner.apps.pop(FIRST), inner.contexts[FIRST]
    replies += ask(grid, MODEL, [99], 3)
    assert_nothing_lost(replies, inner, "topk:0.05", total_update(3, FIRST))
    ask(grid, MODEL, [99], 4)
    assert "lost" not in inner.sent[-1].content["fedsynsam"]


def test_push_and_pull_apart() -> None:
    inner = nodes("topk:0.05")
    grid = CompressedGrid(inner, "topk:0.05")
    content = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
    ids = list(grid.push_messages([Message(content, dst_node_id=n, message_type="train") for n in (FIRST, SECOND)]))
    replies = [reply for identifier in ids for reply in grid.pull_messages([identifier])]
    assert [arrays_of(reply.content["arrays"])["weight"].shape for reply in replies] == [(30, 20)] * 2
    assert list(grid.payloads) == [SECOND]
    assert grid.get_node_ids() == [FIRST, SECOND]
    evaluate = Message(RecordDict({"arrays": record(MODEL)}), dst_node_id=FIRST, message_type=MessageType.EVALUATE)
    (reply,) = grid.pull_messages(grid.push_messages([evaluate]))
    assert list(reply.content) == ["metrics"]


def test_one_bad_payload_costs_one_reply(caplog: pytest.LogCaptureFixture) -> None:
    inner = nodes("topk:0.05", count=3)

    def tamper(node: int, reply: Message) -> Message:
        if node == SECOND and reply.metadata.message_type == "train":
            reply.content["fedsynsam"]["payload"] = reply.content["fedsynsam"]["payload"][:-1]
        return reply

    inner.tamper = tamper
    with caplog.at_level(logging.WARNING, "flwr.fedsynsam"):
        result = FedAvg(min_train_nodes=3, min_available_nodes=3, fraction_evaluate=0.0).start(
            CompressedGrid(inner, "topk:0.05"), record(MODEL), num_rounds=2
        )
    assert "the reply of node 12 is left out: PayloadError: cut off: " in caplog.text
    assert set(result.arrays) == set(MODEL)
    assert not np.array_equal(result.arrays["weight"].numpy(), MODEL["weight"])
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert result.arrays["mask"].numpy().dtype == np.float64, "Flower's averages are no longer floats: see Reference"
    assert not inner.errors


def test_other_messages_pass() -> None:
    inner = nodes("topk:0.05")
    content = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({})})
    message = Message(content, dst_node_id=FIRST, message_type=MessageType.EVALUATE)
    (reply,) = CompressedGrid(inner, "topk:0.05").send_and_receive([message])
    assert list(inner.sent[0].content) == ["arrays", "config"]
    assert list(reply.content) == ["metrics"]


def test_equal_seeds_give_equal_bytes_and_nodes_draw_apart() -> None:
    blobs = []
    for seed in (0, 0, 1):
        apps = [client_app(lambda a, m: moved(a, 5), [CompressionMod("quantize:2", seed=seed)]) for _ in range(2)]
        inner = Nodes(apps)
        ask(CompressedGrid(inner, "quantize:2"), MODEL, [FIRST, SECOND])
        blobs.append([reply.content["fedsynsam"]["payload"] for reply in inner.replies])
    assert blobs[0] == blobs[1]
    assert blobs[0][0] != blobs[0][1]
    assert blobs[0][0] != blobs[2][0]


def test_a_node_whose_number_is_none_is_refused() -> None:
    for found in (1.5, True, float("inf"), "1_0", ""):
        with pytest.raises(fs.ArgumentError, match="expected a whole number"):
            node_number(SimpleNamespace(node_config={"partition-id": found}, node_id=5))
    context = SimpleNamespace(node_config={"partition-id": "abc"}, node_id=5)
    words = "partition-id of the node's configuration is 'abc'; expected a whole number"
    with pytest.raises(fs.ArgumentError, match=words):
        CompressionMod("quantize:2")._node_seed(context)
    with pytest.raises(fs.ArgumentError, match=words):
        Place(context, "residuals", 1, False)
    assert node_number(SimpleNamespace(node_config={}, node_id=5)) is None
    assert node_number(SimpleNamespace(node_config={"partition-id": "7"}, node_id=5)) == 7


def test_an_array_record_of_another_name() -> None:
    def train(message: Message, context: object, call_next: object) -> Message:
        trained = record(moved(arrays_of(message.content["model"]), 1))
        return Message(RecordDict({"model": trained}), reply_to=message)

    from flwr.clientapp import ClientApp

    app = ClientApp(mods=[CompressionMod("none", arrayrecord_key="model")])
    app.train()(lambda message, context: train(message, context, None))
    grid = CompressedGrid(Nodes([app]), "none", arrayrecord_key="model")
    message = Message(RecordDict({"model": record(MODEL)}), dst_node_id=FIRST, message_type="train")
    (reply,) = grid.send_and_receive([message])
    assert isinstance(reply.content["model"], ArrayRecord)
