"""The ServerApp: FedAvg that notes what arrived, and leaves out nodes that the test has killed."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from constant import SIZE
from fedsynsam.integrations.flower import CompressedGrid

app = ServerApp()


class Noting(FedAvg):
    def __init__(self, folder: Path) -> None:
        super().__init__(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0)
        self.folder, self.arrived, self.replies = folder, np.zeros(SIZE), []

    def configure_train(self, server_round, arrays, config, grid):
        self.sent = arrays["w"].numpy()
        if (self.folder / f"pause-{server_round}").exists():
            (self.folder / "paused").touch()
            while (self.folder / f"pause-{server_round}").exists():
                time.sleep(0.1)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        good = [reply for reply in replies if not reply.has_error()]
        self.replies.append(len(good))
        for reply in good:
            self.arrived += reply.content["arrays"]["w"].numpy().astype(np.float64) - self.sent
        return super().aggregate_train(server_round, replies)


def leave_out_the_dead(grid: Grid, dead: Path) -> None:
    """Neither ask nor wait for the nodes named in a file: Flower would take a minute to find out that one is gone."""
    every = grid.get_node_ids

    def living() -> list[int]:
        names = dead.read_text().split() if dead.exists() else []
        return [node for node in every() if str(node) not in names]

    def send_and_receive(messages, *, timeout=None) -> list:
        messages, replies = list(messages), []
        waiting = dict(zip(grid.push_messages(messages), (m.metadata.dst_node_id for m in messages), strict=True))
        while set(waiting.values()) & set(living()):
            for reply in grid.pull_messages(list(waiting)):
                replies.append(reply)
                del waiting[reply.metadata.reply_to_message_id]
            time.sleep(0.5)
        return replies

    grid.get_node_ids, grid.send_and_receive = living, send_and_receive


@app.main()
def main(grid: Grid, context: Context) -> None:
    run = context.run_config
    folder = Path(run["folder"])
    leave_out_the_dead(grid, folder / "dead")
    strategy = Noting(folder)
    start = ArrayRecord({"w": Array(np.zeros(SIZE, dtype=np.float32))})
    wire = CompressedGrid(grid, run["spec"]) if run["spec"] else grid
    strategy.start(wire, start, num_rounds=run["rounds"])
    np.save(folder / "arrived.npy", strategy.arrived)
    part = Path(run["result"] + ".part")
    part.write_text(json.dumps({"replies": strategy.replies}))
    part.replace(run["result"])
