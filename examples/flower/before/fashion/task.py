"""Model, data and local training, as any Flower app has them."""

from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.models import build_model
from fedsynsam.fl.partition import partition

torch.set_num_threads(1)


@lru_cache
def data():
    return load_dataset("fashion-mnist-subset")


@lru_cache
def parts(number, seed):
    """The examples of each client; few of them see all labels."""
    return partition("dirichlet", data().y_train.numpy(), number, np.random.default_rng(seed), alpha=0.3)


def new_model(name, seed=0):
    return build_model(name, data().image_shape, data().classes, seed)


def train(model, examples, steps, lr, rng):
    """Local SGD on batches of 32 drawn with replacement; the mean loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    total = 0.0
    for _ in range(steps):
        chosen = rng.choice(examples, 32)
        loss = cross_entropy(model(data().x_train[chosen]), data().y_train[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / steps
    return total


@torch.no_grad()
def accuracy(model):
    return float((model(data().x_test[:]).argmax(dim=1) == data().y_test).float().mean())
