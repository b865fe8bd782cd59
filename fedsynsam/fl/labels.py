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
    """Estimates a client's mix of labels from its update; for modules that end in a linear layer with a bias.

    Raises ValueError when the last two parameters are not a weight [classes, features] and a bias [classes].
    """

    def __init__(self, module: nn.Module, classes: int) -> None:
        *_, weight, bias = module.parameters()
        if weight.ndim != 2 or weight.shape[0] != classes or bias.shape != (classes,):
            raise ValueError(
                f"the module ends in parameters {list(weight.shape)} and {list(bias.shape)}; expected a linear layer's "
                f"[{classes}, features] and [{classes}]"
            )
        self._shape, self._tail = weight.shape, weight.numel() + classes

    def __call__(self, update: Tensor) -> Tensor:
        """Shares of the classes [classes], at least 0, summing to 1, from an update [P].

        q_c = max(0, Σ_f Δweight[c, f] + Δbias[c]) / Σ_c' max(0, …); equal shares if no row grew.
        """
        weight, bias = update[-self._tail :].split([self._tail - self._shape[0], self._shape[0]])
        grown = (weight.view(self._shape).sum(dim=1) + bias).clamp_min(0.0)
        total = grown.sum()
        return grown / total if bool(total > 0) else torch.full_like(grown, 1.0 / len(grown))
