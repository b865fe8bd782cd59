"""A FedSynSAM client's local steps in a Flower ClientApp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from ...errors import StateError
from ...optim import SAM
from .strategy import BETA, IMAGES, LABELS, RHO, SYNTHETIC, VERSION


class LocalSynSAM:
    """SAM steps whose perturbation is the synthetic gradient that the server's `FedSynSAM` sent the means for.

        d = beta · ∇L(w; synthetic set) + (1 − beta) · ∇L(w; batch)
        w ← base optimizer's step from w with the gradient ∇L(w + rho · d / ‖d‖; batch)

    Before the server has a set the steps are plain. In a train function, with `optimizer.step(images, labels)` in the
    place of the usual five lines::

        optimizer = LocalSynSAM(message, context, model, torch.optim.SGD, lr=0.05)

    The set is kept in `context.state`, because the server sends it once. loss: of outputs against labels, which may be
    soft ([B, classes]); options: the base optimizer's. Source: arXiv 2602.11584, with the gradients of `fl`.

    Raises StateError if the server believes that this node has a set that it lacks (its SuperNode was started again):
    the reply counts as failed, and the server sends it anew.
    """

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        base_optimizer: type[Optimizer],
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        configrecord_key: str = "config",
        **options: Any,
    ) -> None:
        config = message.content.config_records.get(configrecord_key, ConfigRecord())
        self._model, self._loss = model, loss
        self._beta = float(config.get(BETA, 1.0))
        self._shared = _synthetic_set(message, context, config)
        if self._shared is not None:
            device = next(model.parameters()).device
            self._shared = self._shared[0].to(device), self._shared[1].to(device)
        self._optimizer = SAM(model.parameters(), base_optimizer, rho=float(config.get(RHO, 0.0)), **options)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step on a batch; return its loss (at the perturbed weights, if there is a perturbation)."""
        self._optimizer.zero_grad()
        if self._shared is not None:
            direction = self._beta * self._loss(self._model(self._shared[0]), self._shared[1])
            if self._beta < 1.0:
                direction = direction + (1.0 - self._beta) * self._loss(self._model(images), labels)
            direction.backward()
            self._optimizer.first_step(zero_grad=True)
        loss = self._loss(self._model(images), labels)
        loss.backward()
        if self._shared is not None:
            self._optimizer.second_step()
        else:
            self._optimizer.base_optimizer.step()
        return loss.detach()


def _synthetic_set(message: Message, context: Context, config: ConfigRecord) -> tuple[Tensor, Tensor] | None:
    """The set that the message brings, or the one that an earlier message brought; None if there is none yet."""
    if VERSION not in config:
        return None
    if SYNTHETIC in message.content:
        context.state[SYNTHETIC] = ArrayRecord(dict(message.content[SYNTHETIC]))
        context.state[VERSION] = ConfigRecord({VERSION: config[VERSION]})
    kept = context.state.config_records.get(VERSION, ConfigRecord()).get(VERSION)
    if kept != config[VERSION]:
        raise StateError(f"this node has lost the synthetic set of round {config[VERSION]} (it has {kept or 'none'}); "
                         "the server will send it again")  # fmt: skip
    record = context.state.array_records[SYNTHETIC]
    return torch.from_numpy(record[IMAGES].numpy()), torch.from_numpy(record[LABELS].numpy())
