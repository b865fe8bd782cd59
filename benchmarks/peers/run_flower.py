"""The job in Flower's simulation: its FedAvg strategy, and one client a core at a time (`num_cpus` = 1)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks import workload
from benchmarks.peers.flower_client import app as client_app
from benchmarks.peers.job import Job, new_model, test


class Clocked(FedAvg):
    """FedAvg that tells each node which client of the job's cohort it is, and notes when a round is over."""

    def __init__(self, job: Job) -> None:
        super().__init__(fraction_train=job.cohort / workload.CLIENTS, fraction_evaluate=0.0)
        self._job = job

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, client in zip(messages, self._job.clients(server_round), strict=True):
            own = ConfigRecord({**config, "client": client, "job": self._job.arguments()})
            message.content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: own})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        if len(replies) != self._job.cohort or any(reply.has_error() for reply in replies):
            raise RuntimeError(f"round {server_round}: a client failed")
        result = super().aggregate_train(server_round, replies)
        self._job.round_done()
        return result


def main() -> None:
    job = Job.parse()
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        result = Clocked(job).start(grid, ArrayRecord(new_model().state_dict()), num_rounds=job.rounds)
        model = new_model()
        model.load_state_dict(result.arrays.to_torch_state_dict())
        job.report(*test(model), flwr=version("flwr"), ray=version("ray"))

    run_simulation(
        server_app,
        client_app,
        num_supernodes=workload.CLIENTS,
        backend_config={
            "init_args": {"num_cpus": job.cores, "num_gpus": 0},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    main()
