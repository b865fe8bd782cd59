"""The synthetic set: a few images with soft labels whose gradient stands in for the gradient of everybody's data.

It is learned on the server from the global weights alone; no client's data are touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsynsam.fl.flat import Batch


@dataclass(frozen=True)
class SyntheticSet:
    """Images f32 [M, C, H, W], label logits f32 [M, classes], and the rate f32 [] that trajectory matching learns."""

    images: Tensor
    logits: Tensor
    rate: Tensor

    @property
    def batch(self) -> Batch:
        """Images and soft labels, as a client uses them."""
        return self.images, self.logits.softmax(dim=1)

    @property
    def num_bytes(self) -> int:
        """Bytes of a broadcast: images and logits as float32."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.images, self.logits))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for a checkpoint."""
        return {"images": self.images, "logits": self.logits, "rate": self.rate}
