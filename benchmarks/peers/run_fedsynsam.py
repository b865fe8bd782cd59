"""The job in this project's simulator, with its defaults: every payload is real bytes, encoded and decoded."""

from __future__ import annotations

from importlib.metadata import version

import torch

from benchmarks.peers.job import Job
from fedsynsam.fl.distributed import ranks
from fedsynsam.fl.simulation import Simulation


def main() -> None:
    job = Job.parse()
    with ranks(torch.device("cpu")) as group:  # one, unless torchrun has started several
        config = job.config().replace(threads=-(-job.cores // group.size))
        last = Simulation(config, group=group).run(on_round=lambda _: job.round_done()).rounds[-1]
        if group.rank == 0:
            job.report(last.test_accuracy or 0.0, last.test_loss or 0.0, fedsynsam=version("fedsynsam"))


if __name__ == "__main__":
    main()
