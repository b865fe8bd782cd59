"""The job in pfl: its FederatedAveraging on a SimulatedBackend, one process a core under torchrun."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as functional
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks import workload
from benchmarks.peers.job import Job, examples, new_model, test


class WithLoss(nn.Sequential):
    """The model with the two methods that pfl asks for."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(images, labels)) * len(labels), len(labels))}


class Client(Dataset):
    """A client's batches of one round; its length, by which it is weighted, is the number of its examples."""

    def __init__(self, job: Job, place: tuple[int, int]) -> None:
        super().__init__(tuple(job.batches(*place)), user_id=place)
        self._length = examples(place[1])

    def __len__(self) -> int:
        return self._length

    def iter(self, batch_size: int | None):
        yield from self.raw_data


class Clock(TrainingProcessCallback):
    """Notes when a round is over."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self._job.round_done()
        return False, Metrics()


def main() -> None:
    job = Job.parse()
    np.random.seed(workload.SEED)  # noqa: NPY002  pfl draws from it: the same in every process
    module = WithLoss(*new_model())
    central = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(module, local_optimizer_create=torch.optim.SGD, central_optimizer=central)
    places = ((number, client) for number in range(1, job.rounds + 1) for client in job.clients(number))
    clients = FederatedDataset(lambda place: Client(job, place), lambda: next(places))
    backend = SimulatedBackend(training_data=clients, val_data=clients, postprocessors=[WeightByDatapoints()])
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds,  # evaluates in the first round, which is warm-up
            train_cohort_size=job.cohort,
            val_cohort_size=None,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=workload.LOCAL_STEPS,
            local_learning_rate=workload.LR,
            local_batch_size=workload.BATCH_SIZE,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=workload.BATCH_SIZE),
        callbacks=[Clock(job)],
        send_metrics_to_platform=False,
    )
    if get_framework_module().distributed.global_rank == 0:
        job.report(*test(module), pfl=version("pfl"))
    if torch.distributed.is_initialized():  # pfl leaves it open; a process that ends before the others may abort then
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
