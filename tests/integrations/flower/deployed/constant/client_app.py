"""The ClientApp; it can be told to hang after the memory is written and before the reply leaves."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from constant import update
from fedsynsam.integrations.flower import CompressionMod


def hang(message: Message, context: Context, call_next) -> Message:
    reply = call_next(message, context)
    marker = Path(context.run_config["folder"]) / f"hang-{context.node_config['partition-id']}"
    if marker.exists():
        marker.rename(marker.with_name("hanging"))
        time.sleep(600)
    return reply


def compress(message: Message, context: Context, call_next) -> Message:
    spec = context.run_config["spec"]
    return CompressionMod(spec)(message, context, call_next) if spec else call_next(message, context)


app = ClientApp(mods=[hang, compress])


@app.train()
def train(message: Message, context: Context) -> Message:
    weights = message.content["arrays"]["w"].numpy() + update(int(context.node_config["partition-id"]))
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.asarray(weights))}),
                          "metrics": MetricRecord({"num-examples": 1})})  # fmt: skip
    return Message(content, reply_to=message)
