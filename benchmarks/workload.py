"""The federated work that the benchmarks of whole rounds share: model, data split, cohorts, local steps."""

from __future__ import annotations

import functools

import numpy as np

from fedsynsam.fl.data import Dataset, load_dataset
from fedsynsam.fl.partition import partition
from fedsynsam.fl.streams import PARTITION, stream

MODEL = "cnn"
DATASET = "fashion-mnist-subset"
CLIENTS = 100
ALPHA = 0.1
COHORTS = (10, 50)
LOCAL_STEPS = 20
BATCH_SIZE = 32
LR = 0.05
SEED = 0


@functools.cache
def data() -> Dataset:
    """The data set, loaded once a process."""
    return load_dataset(DATASET)


@functools.cache
def parts() -> list[np.ndarray]:
    """The examples of each client, split over them once a process."""
    return partition("dirichlet", data().y_train.numpy(), CLIENTS, stream(SEED, PARTITION), alpha=ALPHA)
