"""Flower without a network: ClientApps in this process behind a grid, every message copied as a network would."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

RUN, SERVER = 77, 1
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER, 5  # a ServerApp's process has them
Train = Callable[[dict[str, np.ndarray], Message], dict[str, np.ndarray]]


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def client_app(train: Train, mods: list, examples: int = 10) -> ClientApp:
    """An app whose model after training is `train(arrays received, message)`."""
    app = ClientApp(mods=mods)

    @app.train()
    def run(message: Message, context: Context) -> Message:
        assert not mods or "fedsynsam" not in message.content, "the app sees a record that it did not ask for"
        trained = record(train(arrays_of(message.content["arrays"]), message))
        content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": examples})})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": examples, "sum": sum(float(a.numpy().sum()) for a in
                                                                     message.content["arrays"].values())})  # fmt: skip
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class Nodes(Grid):
    """Nodes 11, 12, … with an app each; `tamper` sees each reply and may change it, or return None: it is lost then."""

    def __init__(self, apps: list[ClientApp], folder: Path | None = None) -> None:
        self.apps = dict(enumerate(apps, start=11))
        config = {} if folder is None else {"fedsynsam-folder": str(folder)}
        self.contexts = {
            node: Context(RUN, node, {"partition-id": node - 11, **config}, RecordDict(), {}) for node in self.apps
        }
        self.tamper: Callable[[int, Message], Message | None] = lambda node, reply: reply
        self.sent: list[Message] = []  # as they went over the wire
        self.replies: list[Message] = []
        self.errors: list[Exception] = []

    def restart(self, node: int) -> None:
        """A SuperNode that was started again: a new node id is Flower's affair, the context's state is empty."""
        self.contexts[node].state = RecordDict()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            self.sent.append(copy.deepcopy(message))
            identifiers.append(message.metadata.message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for message in [sent for sent in self.sent if sent.metadata.message_id in set(message_ids)]:
            node, message = message.metadata.dst_node_id, copy.deepcopy(message)
            context = copy.deepcopy(self.contexts[node])
            try:
                reply = self.apps[node](message, context)
                self.contexts[node] = context  # as Flower does: only if the app has answered
            except Exception as error:
                self.errors.append(error)
                reply = Message(Error(2, str(error)), reply_to=message)
            reply = self.tamper(node, copy.deepcopy(reply))
            if reply is not None:
                self.replies.append(copy.deepcopy(reply))
                replies.append(reply)
        return replies

    def get_node_ids(self) -> list[int]:
        return list(self.apps)

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> object:
        return RUN

    def create_message(self, *arguments: object, **options: object) -> Message:
        raise NotImplementedError
