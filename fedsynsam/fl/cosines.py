"""How well each estimate of the perturbation agrees with the global gradient, at the local weights where it is used."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import Batch, FlatModel
from fedsynsam.fl.streams import HELD_OUT, stream

SAMPLE = 2000  # held-out (test) images for the global gradient
STEPS_IN = 10  # local steps before measuring, when clients have drifted


def held_out_sample(dataset: Dataset, seed: int) -> Batch:
    """A fixed sample of test images, which no estimator has seen."""
    count = len(dataset.y_test)
    chosen = stream(seed, HELD_OUT).choice(count, min(SAMPLE, count), replace=False)
    indices = torch.from_numpy(chosen).to(dataset.y_test.device)
    return dataset.x_test[indices], dataset.y_test[indices]


class Probe:
    """Measures cos(estimate, ∇F(w)) for one client, once: called at each local step, it acts at step `STEPS_IN`.

    Estimates: `local` (gradient of the client's next batch), `previous` (the last global update, reversed), `drift`
    (w minus the round's first weights, which the client knows anyway), `synthetic` and `real` (gradient of a set).
    Gradients are taken in `model`, which may be the one that is trained.
    """

    def __init__(
        self, model: FlatModel, held_out: Batch, start: Tensor, reversed_update: Tensor | None, sets: dict[str, Batch]
    ) -> None:
        self._model, self._held_out, self._sets = model, held_out, sets
        self._start, self._reversed_update = start, reversed_update
        self._step = 0
        self.result: dict[str, float] = {}

    def __call__(self, weights: Tensor, batch: Batch, last_step: bool) -> None:
        """To be called before each local step with the local weights [P]. Overwrites the model's gradient."""
        due = self._step == STEPS_IN or (last_step and self._step < STEPS_IN)
        self._step += 1
        if not due:
            return
        self._model.weights.copy_(weights.view(1, -1))
        truth = self._gradient(self._held_out)
        estimates = {"drift": weights - self._start}
        if self._reversed_update is not None:
            estimates["previous"] = self._reversed_update
        for name, data in {"local": batch, **self._sets}.items():
            estimates[name] = self._gradient(data)
        self.result = {
            name: float(functional.cosine_similarity(estimate, truth, dim=0)) for name, estimate in estimates.items()
        }

    def _gradient(self, data: Batch) -> Tensor:
        self._model.backward(data)
        return self._model.gradient[0].clone()


def mean_cosines(results: list[dict[str, float]]) -> dict[str, float]:
    """The mean over clients, estimate by estimate, rounded to four digits."""
    names = sorted({name for result in results for name in result})
    return {name: round(float(np.mean([row[name] for row in results if name in row])), 4) for name in names}
