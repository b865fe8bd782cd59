"""Which labels a client trained on, as its update tells: a server needs it to hold an update against the right images.

With cross-entropy the gradient of row c of the last layer, on one example with features h ≥ 0 (they come from a ReLU),
is (p_c − [y = c]) · h. So over local training row c grows where the client has examples of class c, and shrinks where
it has none: the sums of the rows' changes give the client's mix of labels away. (For a single example it is exact:
Zhao et al. 2020, arXiv 2001.02610.) Under sparse compression the many entries of a row tell more than its bias. A class
that the client has less of than the model predicts for the client's examples passes for absent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelMix:
    """Estimates a client's mix of labels from its update; for modules that end in a linear layer with a bias."""

    def __init__(self, classes: int, features: int) -> None:
        self._classes, self._features = classes, features

    @classmethod
    def of(cls, module: nn.Module, classes: int) -> LabelMix | None:
        """The estimator for `module`, or None if its last parameters are no [classes, features] and [classes]."""
        last = [tuple(parameter.shape) for parameter in module.parameters()][-2:]
        fits = len(last) == 2 and len(last[0]) == 2 and last[0][0] == classes and last[1] == (classes,)
        return cls(classes, last[0][1]) if fits else None

    def __call__(self, update: Tensor) -> Tensor:
        """Shares of the classes [classes], at least 0, summing to 1, from an update [P].

        q_c = max(0, Σ_f Δweight[c, f] + Δbias[c]) / Σ_c' max(0, …); equal shares if no row grew.
        """
        tail = update[-self._classes * (self._features + 1) :]
        weight, bias = tail.split([self._classes * self._features, self._classes])
        grown = (weight.view(self._classes, -1).sum(dim=1) + bias).clamp_min(0.0)
        total = grown.sum()
        return grown / total if bool(total > 0) else torch.full_like(grown, 1.0 / len(grown))
