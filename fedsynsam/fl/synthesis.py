"""The synthetic set: a few images with soft labels whose gradient stands in for the gradient of everybody's data.

It is learned on the server from what the server has seen anyway (`Evidence`); no client's data are touched.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.matching import FlatLoss, gradient_mismatch, trajectory_mismatch
from fedsynsam.fl.metrics import CutShort, OnStep, StepProgress
from fedsynsam.fl.streams import SYNTHESIS, stream
from fedsynsam.fl.synthetic import SyntheticSet

# Adam's rates for images, logits and log-rate; they fall to a twentieth along half a cosine.
IMAGE_LR, LOGIT_LR, RATE_LR = 0.05, 0.01, 0.01
# Logit of an image's own class at first: soft labels that already tell the classes apart (0 leaves nothing to start
# from, 5 nothing to learn).
FIRST_LOGIT = 2.0
FIRST_RATE = 0.04  # DynaFed's
INNER_STEPS = 10  # of trajectory matching; DynaFed takes 20
AVERAGE = 3  # global weights averaged in the goal of trajectory matching, which averages compression noise, too


def first_set(dataset: Dataset, images_per_class: int, rng: np.random.Generator) -> SyntheticSet:
    """Clipped Gaussian noise, the same number of images for each class."""
    device = dataset.x_train.device
    shape = (images_per_class * dataset.classes, *dataset.image_shape)
    images = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)
    own = torch.arange(dataset.classes, device=device).repeat_interleave(images_per_class)
    logits = FIRST_LOGIT * torch.nn.functional.one_hot(own, dataset.classes).float()
    return SyntheticSet(_clip(images, dataset), logits, torch.tensor(math.log(FIRST_RATE), device=device))


def learn(
    config: RunConfig,
    module: nn.Module,
    dataset: Dataset,
    evidence: Evidence,
    previous: SyntheticSet | None,
    round_number: int,
    on_step: OnStep | None = None,
    *,
    threads: int = 1,
) -> tuple[SyntheticSet, float]:
    """The synthetic set after `round_number` rounds, learned anew or, in a third of the steps, from `previous`.

    Beside it the matching loss that it ended with: the mean over the last tenth of the steps, rounded to four digits.

    `dataset` gives the shape and range of images and the number of classes, nothing else. `on_step` sees every step
    and ends the learning by raising `CutShort`; what was learned so far is then used. `threads` as in `FlatLoss`.
    """
    rng = stream(config.seed, SYNTHESIS, round_number)
    first = previous if previous is not None else first_set(dataset, config.synthetic_images, rng)
    steps = config.synthetic_steps if previous is None else -(-config.synthetic_steps // 3)
    images, logits, log_rate = (tensor.clone().requires_grad_() for tensor in first.tensors().values())
    optimizer = Adam({images: IMAGE_LR, logits: LOGIT_LR, log_rate: RATE_LR})
    loss = FlatLoss(module, threads)
    classes = logits.argmax(dim=1)  # of each image
    losses = list[float]()
    for step in range(steps):
        if config.synthetic_method == "gradient":
            start, goal, mix = evidence.draw(rng)
            mismatch = gradient_mismatch(loss, images, logits, start, goal, _shares(mix, classes))
        else:
            start, goal = evidence.segment(config.synthetic_segment, AVERAGE, rng)
            mismatch = trajectory_mismatch(loss, images, logits, log_rate, start, goal, INNER_STEPS)
        mismatch.backward(inputs=[images, logits, log_rate])  # not in the weights, which are given
        optimizer.step(0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))
        with torch.no_grad():
            images.copy_(_clip(images, dataset))
        losses.append(float(mismatch.detach()))
        if on_step is not None:
            progress = StepProgress(stage="synthesis", done=step + 1, total=steps, round=round_number, value=losses[-1])
            try:
                on_step(progress)
            except CutShort:
                break
    last = losses[-max(1, len(losses) // 10) :]
    learned = SyntheticSet(images.detach(), logits.detach(), log_rate.detach())
    return learned, round(sum(last) / len(last), 4)


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), bit for bit as `torch.optim.Adam` computes it tensor by tensor.

    That one imports PyTorch's compiler when it is first used, which a short run would wait for longer than it learns.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, rates: dict[Tensor, float]) -> None:
        self._rates = rates
        self._moments = {tensor: (torch.zeros_like(tensor), torch.zeros_like(tensor)) for tensor in rates}
        self._steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move each tensor that has a gradient at `factor` times its rate, and forget the gradients."""
        self._steps += 1
        first, second = 1 - self.BETA1**self._steps, (1 - self.BETA2**self._steps) ** 0.5
        for tensor, rate in self._rates.items():
            gradient, tensor.grad = tensor.grad, None
            if gradient is None:  # in every step: the rate of trajectory matching, when gradients are matched
                continue
            mean, square = self._moments[tensor]
            mean.lerp_(gradient, 1 - self.BETA1)
            square.mul_(self.BETA2).addcmul_(gradient, gradient, value=1 - self.BETA2)
            tensor.addcdiv_(mean, (square.sqrt() / second).add_(self.EPSILON), value=-rate * factor / first)


def _shares(mix: Tensor | None, classes: Tensor) -> Tensor | None:
    """How much each image counts [M], so that those of a class c count together as much as `mix` [classes] has of c.

    `classes` [M] are the images'. None, all count equally, where there is no mix, or no image of the classes in it.
    """
    if mix is None:
        return None
    shares = (mix / torch.bincount(classes, minlength=len(mix)).clamp_min(1))[classes]
    return shares if bool(shares.any()) else None


def _clip(images: Tensor, dataset: Dataset) -> Tensor:
    """`images` within the range that pixels of the data set can take, channel by channel."""
    return torch.minimum(torch.maximum(images, dataset.low.view(-1, 1, 1)), dataset.high.view(-1, 1, 1))
