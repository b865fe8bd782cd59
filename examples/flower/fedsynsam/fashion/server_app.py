"""The ServerApp."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fashion.task import accuracy, data, new_model
from fedsynsam.fl.config import RunConfig
from fedsynsam.integrations.flower import CompressedGrid, FedSynSAM

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    run = context.run_config

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = new_model(run["model"])
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": accuracy(model)})

    strategy = FedSynSAM(
        new_model(run["model"]), image_shape=data().image_shape, classes=data().classes,
        low=float(data().low), high=float(data().high), config=RunConfig(synthetic_start=run["synthetic-start"]),
        fraction_evaluate=0.0, min_available_nodes=run["partitions"],
    )  # fmt: skip
    start = ArrayRecord(new_model(run["model"], run["seed"]).state_dict())
    grid = CompressedGrid(grid, "topk:0.01")
    result = strategy.start(grid, start, num_rounds=run["rounds"], evaluate_fn=evaluate)
    if run["result"]:
        accuracies = {number: metrics["accuracy"] for number, metrics in result.evaluate_metrics_serverapp.items()}
        part = Path(run["result"] + ".part")
        part.write_text(json.dumps(accuracies))
        part.replace(run["result"])
