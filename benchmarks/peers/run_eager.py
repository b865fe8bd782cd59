"""The job as a plain PyTorch loop: a deep copy of the model a client, torch.optim.SGD, an average of state_dicts.

PyTorch's threads: one, or one a core, whichever the warm-up rounds were faster with.
"""

from __future__ import annotations

import copy

import torch

from benchmarks.peers.job import Job, examples, new_model, sgd_steps, test


def threads(job: Job) -> int:
    """How many threads the next round uses: one, one a core, and from the fourth round on what was faster."""
    done = len(job.finished)
    if done < 3:
        return job.cores if done == 2 else 1
    first, one, each = job.finished[:3]
    return 1 if one - first < each - one else job.cores


def main() -> None:
    job = Job.parse()
    model = new_model()
    for round_number in range(1, job.rounds + 1):
        torch.set_num_threads(threads(job))
        states, cohort = [], job.clients(round_number)
        for client in cohort:
            local = copy.deepcopy(model)
            sgd_steps(local, job.batches(round_number, client))
            states.append(local.state_dict())
        total = sum(examples(client) for client in cohort)
        shares = [examples(client) / total for client in cohort]
        model.load_state_dict(
            {key: sum(share * state[key] for share, state in zip(shares, states, strict=True)) for key in states[0]}
        )
        job.round_done()
    job.report(*test(model), threads=str(threads(job)))


if __name__ == "__main__":
    main()
