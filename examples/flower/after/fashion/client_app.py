"""The ClientApp."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fashion.task import new_model, parts, train
from fedsynsam.integrations.flower import CompressionMod

app = ClientApp(mods=[CompressionMod("topk:0.01")])


@app.train()
def train_client(message: Message, context: Context) -> Message:
    run, client = context.run_config, int(context.node_config["partition-id"])
    model = new_model(run["model"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples = parts(run["partitions"], run["seed"])[client]
    rng = np.random.default_rng([run["seed"], int(message.content["config"]["server-round"]), client])
    loss = train(model, examples, run["local-steps"], run["lr"], rng)
    metrics = MetricRecord({"num-examples": len(examples), "train-loss": loss})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
