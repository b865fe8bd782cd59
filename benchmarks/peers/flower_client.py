"""The Flower ClientApp of the job, in a module of its own so that Flower's workers import it once and keep its data."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.peers.job import Job, examples, new_model, sgd_steps

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client that the message names from the weights that it brings."""
    config = message.content["config"]
    job = Job.parse([str(word) for word in config["job"]])
    client, round_number = int(config["client"]), int(config["server-round"])
    model = new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    sgd_steps(model, job.batches(round_number, client))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": examples(client)}),
        }
    )
    return Message(content=content, reply_to=message)
