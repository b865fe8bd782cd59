"""Leads on learning the synthetic set, one at a time, offline: `python -m benchmarks.leads RUN --out FILE.csv`.

RUN is the folder of a finished FedSynSAM run with its checkpoint: the trajectory and the payloads in it are what the
server had. Sets are learned as the run would have done, after round 25 and again, warm-started, every ten rounds, and
each is measured where it would be used: at the local weights of clients, ten steps into rounds 5 and 10 later, by the
cosine with the gradient of held-out data. A row gives a lead, the mean cosine from round 50 on, and the seconds of
learning. The loop below is the library's (`fedsynsam.fl.synthesis`) with the changes that a lead asks for; leads called
`bound` use what no server has.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from benchmarks.provenance import provenance
from benchmarks.synthesis_lab import Lab
from fedsynsam.fl.streams import SYNTHESIS, stream
from fedsynsam.fl.synthesis import IMAGE_LR, LOGIT_LR, RATE_LR, first_set

TRUTH = 512  # training images in the gradient that `bound: gradients of training data` matches
FROM = 50  # round from which cosines are averaged
EVERY = 10  # rounds between renewals


@dataclass(frozen=True)
class Lead:
    """What a lead changes. The defaults are gradient matching as it was at first: displacements alone."""

    updates: float = 0.0  # share of steps that match a client's update
    mix: str = "rows"  # the client's mix of labels: rows, client (rows of all it sent), bias, equal, or true (a bound)
    steps: int = 300
    drift: float = 3.0
    segment: int = 5
    images: int = 5
    pieces: int = 1  # averaged in a step
    masked: bool = False  # cosine over the entries that the payload holds
    layers: float = 0.0  # weight of the mean of the layers' cosines against the flat one
    shift: int = 0  # pixels that images are shifted by, at random
    variation: float = 0.0  # weight of the total variation
    grid: int = 0  # side of a coarse grid that images are interpolated from
    smooth: int = 0  # side of the coarse noise that images start from
    average: float = 0.0  # decay of the average of images over steps that is used
    drift_mix: float = 0.0  # at use: d = g/‖g‖ + drift_mix (w − w_t)/‖w − w_t‖
    sets: int = 1  # latest sets that are used together
    payloads: int = 4  # of a round that are known, at most what the run kept
    along: float = 0.0  # a client's update is matched up to so far along itself
    aside: float = 0.0  # and up to so far along another client's
    joined: int = 1  # updates of one round that are matched together, each with a random weight
    weighed: bool = False  # displacements, too, are held against the classes that their rounds saw
    recent: int = 0  # rounds that pieces are drawn from, the last ones; all that are kept by default
    scaled: bool = False  # a client's update is matched in size, too: relative error, after one scale for all
    own_mix: float = 0.0  # at use: minus own_mix times the direction of the gradient of the client's own batch
    truth: bool = False  # match the gradient of training data (a bound)


UPDATES = Lead(updates=0.5, drift=5.0, steps=600)  # the library's, when it kept four payloads of a round
BEST = dataclasses.replace(UPDATES, payloads=10)  # the library's, when it took 600 steps
LEADS = {
    "displacements": Lead(),
    "displacements, 600 steps": Lead(steps=600),
    "displacements, segments of 10 rounds": Lead(segment=10),
    "displacements, two pieces a step": Lead(pieces=2),
    "displacements, average of the last images": Lead(average=0.97),
    "displacements, two latest sets together": Lead(sets=2),
    "displacements, drift in the mix": Lead(drift_mix=0.3),
    "updates, equal shares of labels": Lead(updates=0.5, mix="equal"),
    "updates, shares from the bias": Lead(updates=0.5, mix="bias"),
    "updates, shares from the rows": Lead(updates=0.5),
    "updates, shares from the rows, entries sent": Lead(updates=0.5, masked=True),
    "updates, 600 steps": Lead(updates=0.5, steps=600),
    "updates, 600 steps, starts up to 5 updates away": UPDATES,
    "and only 2 payloads a round": dataclasses.replace(UPDATES, payloads=2),
    "and in 7 of 10 steps": dataclasses.replace(UPDATES, updates=0.7),
    "and 10 images a class": dataclasses.replace(UPDATES, images=10),
    "and images shifted": dataclasses.replace(UPDATES, shift=2),
    "and total variation": dataclasses.replace(UPDATES, variation=0.3),
    "and images from a 14x14 grid": dataclasses.replace(UPDATES, grid=14),
    "and smooth first images": dataclasses.replace(UPDATES, smooth=7),
    "and half the cosine layer by layer": dataclasses.replace(UPDATES, layers=0.5),
    "and drift in the mix": dataclasses.replace(UPDATES, drift_mix=0.3),
    "10 payloads": BEST,
    "10 payloads, 10 images a class": dataclasses.replace(BEST, images=10),
    "10 payloads, drift in the mix": dataclasses.replace(BEST, drift_mix=0.3),
    "10 payloads, 10 images a class, drift in the mix": dataclasses.replace(BEST, images=10, drift_mix=0.3),
    "10 payloads, shares from all that the client sent": dataclasses.replace(BEST, mix="client"),
    "10 payloads, a cohort's updates joined": dataclasses.replace(BEST, joined=10),
    "10 payloads, displacements by their rounds' shares": dataclasses.replace(BEST, weighed=True),
    "10 payloads, updates matched on their way": dataclasses.replace(BEST, along=1.0),
    "10 payloads, updates matched off their way": dataclasses.replace(BEST, aside=3.0),
    "10 payloads, two pieces a step": dataclasses.replace(BEST, pieces=2),
    "10 payloads, 1200 steps": dataclasses.replace(BEST, steps=1200),
    "10 payloads, average of the last images": dataclasses.replace(BEST, average=0.97),
    "10 payloads, two latest sets together": dataclasses.replace(BEST, sets=2),
    "10 payloads, pieces of the last 10 rounds": dataclasses.replace(BEST, recent=10),
    "10 payloads, pieces of the last 25 rounds": dataclasses.replace(BEST, recent=25),
    "10 payloads, pieces of the last 50 rounds": dataclasses.replace(BEST, recent=50),
    "10 payloads, pieces of the last 25 rounds, 10 images a class": dataclasses.replace(BEST, recent=25, images=10),
    "10 payloads, pieces of the last 25 rounds, updates in 7 of 10 steps": dataclasses.replace(
        BEST, recent=25, updates=0.7
    ),
    "10 payloads, pieces of the last 25 rounds, two pieces a step": dataclasses.replace(BEST, recent=25, pieces=2),
    "10 payloads, updates matched in size, too": dataclasses.replace(BEST, scaled=True),
    "10 payloads, minus a fifth of the own gradient": dataclasses.replace(BEST, own_mix=0.2),
    "10 payloads, drift in the mix, minus a fifth of the own gradient": dataclasses.replace(
        BEST, drift_mix=0.3, own_mix=0.2
    ),
    "10 payloads, 20 images a class": dataclasses.replace(BEST, images=20),
    "bound: and true shares of labels": dataclasses.replace(BEST, mix="true"),
    "bound: gradients of training data": Lead(truth=True),
    "bound: gradients of training data, pieces of the last 25 rounds": Lead(truth=True, recent=25),
}


class Learner:
    """Learns sets from a lab's evidence, the way a lead says."""

    def __init__(self, lab: Lab, lead: Lead, last: int) -> None:
        self.lab, self.lead, self.evidence = lab, lead, lab.evidence(last, lead.payloads, lead.recent)
        self.rng, self.last = stream(lab.config.seed, SYNTHESIS, last), last
        config = lab.config
        self.scale = torch.tensor(math.log(config.lr * config.local_steps)).requires_grad_()  # log: update / gradient

    def start(self) -> tuple[Tensor, Tensor]:
        """Images (or the grids that they come from) and logits to begin with."""
        lead, dataset = self.lead, self.lab.dataset
        first = first_set(dataset, lead.images, self.rng)
        images = first.images
        if side := lead.grid or lead.smooth:
            images = functional.interpolate(images, side)  # its nearest pixels: noise of the same spread
            if lead.smooth:
                images = self.render(images, (lead.smooth,) * 2)
        return images, first.logits

    def render(self, images: Tensor, coarse: tuple[int, int] | None = None) -> Tensor:
        """The images of a coarse grid (no change where they are no grid)."""
        size = self.lab.dataset.image_shape[1:]
        if images.shape[2:] == size:
            return images
        return functional.interpolate(images, size, mode="bilinear")

    def learn(self, previous: tuple[Tensor, Tensor] | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What learning ends with, to start the next one from, and what is used."""
        lead, lab = self.lead, self.lab
        steps = lead.steps if previous is None else -(-lead.steps // 3)
        images, logits = (item.clone().requires_grad_() for item in previous or self.start())
        groups = [{"params": [images], "lr": IMAGE_LR}, {"params": [logits], "lr": LOGIT_LR}]
        optimizer = torch.optim.Adam([*groups, {"params": [self.scale], "lr": RATE_LR}])
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        )
        mean: tuple[Tensor, Tensor] | None = None
        for step in range(steps):
            loss = sum(self.mismatch(images, logits) for _ in range(lead.pieces)) / lead.pieces
            if lead.variation:
                drawn = self.render(images)
                loss = loss + lead.variation * sum(drawn.diff(dim=dim).square().mean() for dim in (2, 3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                images.clamp_(float(lab.dataset.low), float(lab.dataset.high))
            now = (images.detach().clone(), logits.detach().clone())
            if mean is None or step < 0.3 * steps:
                mean = now
            else:
                mean = (torch.lerp(now[0], mean[0], lead.average), torch.lerp(now[1], mean[1], lead.average))
        used = mean if lead.average and mean is not None else now
        return now, (self.render(used[0]), used[1].softmax(dim=1))

    def mismatch(self, images: Tensor, logits: Tensor) -> Tensor:
        """The loss of one drawn piece."""
        lead, lab, rng = self.lead, self.lab, self.rng
        images, labels, entries = self.render(images), logits.softmax(dim=1), None
        if lead.shift:
            images = images.roll(tuple(int(by) for by in rng.integers(-lead.shift, lead.shift + 1, 2)), (2, 3))
        if rng.random() < lead.updates:
            round_number = int(rng.integers(min(self.evidence.weights) + 1, self.last + 1))
            known = len(self.evidence.payloads[round_number])
            joined = min(lead.joined, known)
            places = rng.choice(known, joined, replace=False) if joined > 1 else [int(rng.integers(known))]
            weights = rng.dirichlet(np.ones(len(places))) if len(places) > 1 else [1.0]
            start, update, mix = lab.weights[round_number - 1], torch.zeros_like(lab.weights[0]), torch.tensor(0.0)
            for place, weight in zip(places, weights, strict=True):
                part = lab.updates[round_number][place]
                update = update + float(weight) * part
                mix = mix + float(weight) * self.mix(round_number, int(place), part)
            if lead.along:
                start = start + lead.along * float(rng.random()) * update
            if lead.aside:
                other = lab.updates[round_number][int(rng.integers(known))]
                start = start + lead.aside * float(rng.random()) * other
            gradient = self.weighed(start, images, labels, mix)
            target, entries = start - (start + update), update != 0
        elif lead.weighed:
            first, newest = min(self.evidence.weights), max(self.evidence.weights)
            begin = int(rng.integers(first, max(first, newest - lead.segment) + 1))
            rounds = range(begin + 1, min(begin + lead.segment, newest) + 1)
            mixes = [
                self.mix(r, place, lab.updates[r][place])
                for r in rounds for place in range(len(self.evidence.payloads[r]))
            ]  # fmt: skip
            start, goal = lab.weights[begin], lab.weights[rounds[-1]]
            aside = lab.updates[begin + 1][int(rng.integers(len(self.evidence.payloads[begin + 1])))]
            start = start + lead.drift * float(rng.random()) * aside
            target = start - goal
            gradient = self.weighed(start, images, labels, torch.stack(mixes).mean(dim=0))
        else:
            start, goal = self.evidence.sample(lead.segment, lead.drift, 1, rng)
            target = start - goal
            if lead.truth:
                drawn = torch.from_numpy(rng.integers(len(lab.dataset.y_train), size=TRUTH))
                target = lab.gradient(start, (lab.dataset.x_train[drawn], lab.dataset.y_train[drawn]))
            gradient = lab.loss.gradient(start, images, labels)
        if lead.masked and entries is not None:
            gradient, target = gradient[entries], target[entries]
        if lead.scaled and entries is not None:
            return (self.scale.exp() * gradient - target).square().sum() / target.square().sum()
        loss = 1.0 - functional.cosine_similarity(gradient, target, dim=0)
        if lead.layers:
            sizes = [parameter.numel() for parameter in lab.module.parameters()]
            pieces = zip(gradient.split(sizes), target.split(sizes), strict=True)
            each = torch.stack([functional.cosine_similarity(*piece, dim=0) for piece in pieces])
            loss = (1 - lead.layers) * loss + lead.layers * (1.0 - each.mean())
        return loss

    def weighed(self, start: Tensor, images: Tensor, labels: Tensor, mix: Tensor) -> Tensor:
        """The gradient [P] at `start` of images that count by their class's share in `mix`."""
        shares = mix.repeat_interleave(self.lead.images) / self.lead.images
        counted = torch.nonzero(shares).squeeze(1)
        return self.lab.loss.gradient(start, images[counted], labels[counted], shares[counted])

    def mix(self, round_number: int, place: int, update: Tensor) -> Tensor:
        """The client's mix of labels, known or estimated."""
        classes = self.lab.dataset.classes
        equal = torch.full((classes,), 1.0 / classes)
        if self.lead.mix == "rows":
            return self.lab.label_mix(update)
        if self.lead.mix == "client":
            return self.lab.client_mix(round_number, place, self.last)
        if self.lead.mix == "true":
            return self.lab.true_mix(round_number, place)
        grown = update[-classes:].clamp_min(0.0)
        return grown / grown.sum() if self.lead.mix == "bias" and bool(grown.sum() > 0) else equal


def mean_cosine(lab: Lab, lead: Lead) -> tuple[float, float]:
    """The mean cosine from round `FROM` on, and the seconds of learning."""
    cosines, seconds = list[float](), 0.0
    kept: tuple[Tensor, Tensor] | None = None
    used: list[tuple[Tensor, Tensor]] = []
    for last in range(lab.config.synthetic_start, lab.config.rounds, EVERY):
        began = time.perf_counter()
        kept, latest = Learner(lab, lead, last).learn(kept)
        seconds += time.perf_counter() - began
        used = [*used, latest][-lead.sets :]
        batch = (torch.cat([images for images, _ in used]), torch.cat([labels for _, labels in used]))
        for round_number, local, truth, own in lab.probes:
            if round_number >= FROM and last < round_number <= last + EVERY:
                direction = lab.gradient(local, batch)
                if lead.drift_mix or lead.own_mix:
                    drift = local - lab.weights[round_number - 1]
                    direction = direction / direction.norm() + lead.drift_mix * drift / drift.norm()
                    direction -= lead.own_mix * own / own.norm().clamp_min(1e-12)
                cosines.append(float(functional.cosine_similarity(direction, truth, dim=0)))
    return float(np.mean(cosines)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.leads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run with its checkpoint")
    parser.add_argument("--leads", help="some of the leads, separated by semicolons; all by default")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV file; rows are added to it")
    options = parser.parse_args()
    names = [name.strip() for name in options.leads.split(";")] if options.leads else list(LEADS)
    torch.set_num_threads(1)
    lab = Lab(options.run)
    facts = {key: getattr(lab.config, key) for key in ("dataset", "alpha", "compressor", "rounds", "seed")}
    facts |= provenance(torch.device("cpu"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    new = not options.out.exists()
    with options.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["lead", "cosine", "seconds", *facts])
        if new:
            writer.writeheader()
        for name in names:
            cosine, seconds = mean_cosine(lab, LEADS[name])
            writer.writerow({"lead": name, "cosine": f"{cosine:.4f}", "seconds": f"{seconds:.1f}", **facts})
            file.flush()
            print(f"{cosine:.4f}  {seconds:5.1f} s  {name}", flush=True)


if __name__ == "__main__":
    main()
