"""The job as a plain PyTorch loop: a deep copy of the model a client, torch.optim.SGD, an average of state_dicts.

PyTorch's threads: one, or one a core, whichever the warm-up rounds were faster with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.job import Job, examples, new_model, sgd_steps, test


class Loop:
    """The loop's model, and a round of it."""

    def __init__(self, job: Job) -> None:
        self.model, self._job = new_model(), job

    def round(self, round_number: int, local_training: Callable[..., None]) -> None:
        """Train the round's cohort from the present model, and average."""
        cohort, states = self._job.clients(round_number), []
        for client in cohort:
            local = self.copy()
            local_training(local, self._job.batches(round_number, client))
            states.append(local.state_dict())
        total = sum(examples(client) for client in cohort)
        self.model.load_state_dict(self.average(states, [examples(client) / total for client in cohort]))

    def copy(self) -> nn.Module:
        """A client's model."""
        return copy.deepcopy(self.model)

    def average(self, states: list[dict[str, Any]], shares: list[float]) -> dict[str, Tensor]:
        """The mean of the clients' state_dicts, weighted by examples."""
        return {key: sum(share * state[key] for share, state in zip(shares, states, strict=True)) for key in states[0]}


def threads(job: Job) -> int:
    """How many threads the next round uses: one, one a core, and from the fourth round on what was faster."""
    done = len(job.finished)
    if done < 3:
        return job.cores if done == 2 else 1
    first, one, each = job.finished[:3]
    return 1 if one - first < each - one else job.cores


def main() -> None:
    job = Job.parse()
    loop = Loop(job)
    for round_number in range(1, job.rounds + 1):
        torch.set_num_threads(threads(job))
        loop.round(round_number, sgd_steps)
        job.round_done()
    job.report(*test(loop.model), threads=str(threads(job)))


if __name__ == "__main__":
    main()
