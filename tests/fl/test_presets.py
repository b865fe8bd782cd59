"""Whole rounds of every preset against arithmetic done by hand, on a quadratic for each client, with compression."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import fedsynsam as fs
from fedsynsam.fl.algorithm import PRESETS, resolve
from fedsynsam.fl.client import LocalRound, Rows, Upload, train
from fedsynsam.fl.config import ALGORITHMS, RunConfig
from fedsynsam.fl.data import Dataset, Images
from fedsynsam.fl.distributed import Group
from fedsynsam.fl.flat import Batch, RowBatch
from fedsynsam.fl.memory import vectors_of_clients
from fedsynsam.fl.records import Records, RecordStore
from fedsynsam.fl.server import Server
from fedsynsam.fl.training import Training

CLIENTS, SIZE, STEPS, LR, RHO, LAM, SHARE = 4, 6, 3, 0.1, 0.5, 0.3, 0.25
COHORTS = ([0, 1], [1, 2], [0, 2], [1, 2], [0, 1])  # the last client never takes part
EXAMPLES = (2, 3, 4, 5)  # of each client: its weight in the mean


class Problem:
    """f_i(w) = ½ (w − a_i)ᵀ diag(q_i) (w − a_i); f_syn has its minimum elsewhere, and q = 1. In float64."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self.minima = rng.normal(size=(CLIENTS, SIZE)).astype(np.float32).astype(np.float64)
        self.curvatures = rng.uniform(0.5, 2.0, (CLIENTS, SIZE)).astype(np.float32).astype(np.float64)
        self.shared = rng.normal(size=SIZE).astype(np.float32).astype(np.float64)
        self.start = rng.normal(size=SIZE).astype(np.float32).astype(np.float64)

    def gradient(self, client: int, weights: np.ndarray) -> np.ndarray:
        return self.curvatures[client] * (weights - self.minima[client])


class QuadraticModel:
    """The problem as a `RowModel`: an example's label is its client, and the shared image is the minimum of f_syn."""

    def __init__(self, problem: Problem, gradient: torch.Tensor) -> None:
        self._minima, self._curvatures = (torch.from_numpy(a).float() for a in (problem.minima, problem.curvatures))
        self.weights, self.gradient = torch.zeros_like(gradient), gradient
        self.total = torch.zeros_like(gradient)  # of all gradients on the clients' batches

    def backward(self, batch: Batch) -> torch.Tensor:
        self.gradient.copy_(self.weights - batch[0][0])
        return torch.zeros(len(self.weights))

    def backward_each(self, batch: RowBatch) -> torch.Tensor:
        clients = batch.labels[:, 0]
        self.gradient.copy_(self._curvatures[clients] * (self.weights - self._minima[clients]))
        self.total += self.gradient
        return torch.zeros(len(self.weights))


class QuadraticWorker:
    """A `Worker` for the problem."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def train(self, start: torch.Tensor, work: LocalRound, config: RunConfig, probes=()) -> tuple[torch.Tensor, ...]:
        gradient = torch.zeros(len(work.steps.sizes), SIZE)
        model, ahead = QuadraticModel(self._problem, gradient), QuadraticModel(self._problem, gradient)
        self.total = ahead.total  # of the gradients that steps were taken with
        return train(Rows(model, ahead, torch.zeros_like(gradient)), start, work, config)


class Federation:
    """Rounds of the library's own server and clients on the problem."""

    def __init__(self, problem: Problem, algorithm: str, compressor: str, **options) -> None:
        preset = PRESETS[algorithm]
        given = {"rho": RHO, "prox": LAM, "gradient_share": SHARE, "local_steps": STEPS, "clients": CLIENTS, **options}
        self.config = resolve(RunConfig(algorithm=algorithm, compressor=compressor, lr=LR, batch_size=2, **given))
        labels = torch.arange(CLIENTS).repeat_interleave(torch.tensor(EXAMPLES))
        images = Images(torch.zeros(len(labels), 1, 1, 1), torch.zeros(1), torch.ones(1))
        dataset = Dataset(
            name="quadratic", x_train=images, y_train=labels, x_test=images, y_test=labels, classes=CLIENTS,
            low=torch.zeros(1), high=torch.ones(1),
        )  # fmt: skip
        self.worker, built = QuadraticWorker(problem), fs.compressor(compressor)
        weights = torch.from_numpy(problem.start).float()
        shared = (torch.from_numpy(problem.shared).float()[None], torch.zeros(1))
        self.server = Server(self.config, weights, shared if preset.perturbation in ("real", "synthetic") else None)
        names = vectors_of_clients(self.config, built.residual)
        self.records = Records(RecordStore("host", names, weights, None), weights, Group())
        parts = [np.flatnonzero(labels.numpy() == client) for client in range(CLIENTS)]
        self.training = Training(self.config, built, dataset, parts, self.server, self.records, shared, shared)

    def round(self, cohort: list[int], groups: list[list[int]] | None = None) -> list[Upload]:
        """One round, of clients trained together, or in `groups`."""
        self.records.place(cohort)
        uploads = list[Upload]()
        for group in groups or [cohort]:
            uploads += self.training.clients(self.worker, group, probing=False)
        self.server.finish_round(uploads, lambda weights, synthetic: weights)
        self.records.keep(cohort, {up.client_id: up.record for up in uploads}, self.server.state.round)
        return uploads

    @property
    def weights(self) -> np.ndarray:
        return self.server.state.weights.numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def identity(sender: object, vector: np.ndarray) -> np.ndarray:
    return vector


def top_half() -> Callable[[object, np.ndarray], np.ndarray]:
    """The larger half of what a sender has to send, with what was left from before."""
    left: dict[object, np.ndarray] = {}

    def compress(sender: object, vector: np.ndarray) -> np.ndarray:
        total = vector + left.get(sender, 0.0)
        sent = np.where(np.abs(total) >= np.sort(np.abs(total))[SIZE // 2], total, 0.0)
        left[sender] = total - sent
        return sent

    return compress


DUALS = ("feddyn", "fedspeed", "fedsmoo", "fedlesam-d", "fedgloss", "fedsynsam-d")
VARIATES = ("scaffold", "fedgamma", "fedlesam-s", "fedsynsam-s")
LOCAL_SAM = ("fedsam", "mofedsam", "fedgamma", "fedspeed")


def by_hand(problem: Problem, name: str, compress: Callable[[object, np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """The global weights after each round of COHORTS, with the equations and signs of the papers."""
    zeros = np.zeros((CLIENTS, SIZE))
    h, c_own, mu = zeros.copy(), zeros.copy(), zeros.copy()
    h_server = c = s = m = np.zeros(SIZE)
    last: dict[int, np.ndarray] = {}
    pseudo_gradient, w, history = None, problem.start, []
    for cohort in COHORTS:
        ascends = name == "fedgloss" and pseudo_gradient is not None
        start = w + RHO * unit(pseudo_gradient) if ascends else w
        sent, sent_mu, variates = {}, {}, c_own.copy()
        for i in cohort:
            x = start.copy()
            for _ in range(STEPS):
                g, epsilon = problem.gradient(i, x), np.zeros(SIZE)
                if name in LOCAL_SAM:
                    epsilon = RHO * unit(g)
                elif name.startswith("fedlesam") and i in last:
                    epsilon = RHO * unit(last[i] - w)
                elif name.startswith(("fedsynsam", "realset")):
                    epsilon = RHO * unit(x - problem.shared)
                elif name == "fedsmoo":
                    epsilon = RHO * unit(g - mu[i] - s)
                    mu[i] += epsilon - s
                step = problem.gradient(i, x + epsilon)
                if name == "fedprox":
                    step = step + LAM * (x - start)
                elif name in DUALS:  # FedDyn's own form: ∇f − h_i + λ(x − w_t)
                    step = step - h[i] + LAM * (x - start)
                elif name in VARIATES:
                    step = step + c - c_own[i]
                elif name == "mofedsam":
                    step = SHARE * step + (1 - SHARE) * m
                x = x - LR * step
            last[i] = w
            sent[i] = compress(i, x - start)
            if name == "fedsmoo":
                sent_mu[i] = compress(("mu", i), mu[i])
            h[i] = h[i] - LAM * sent[i]
            variates[i] = c_own[i] - c - sent[i] / (STEPS * LR)
        mean = sum(EXAMPLES[i] * sent[i] for i in cohort) / sum(EXAMPLES[i] for i in cohort)
        pseudo_gradient, m = -mean, -mean / (STEPS * LR)
        c, c_own = c + (variates - c_own).sum(0) / CLIENTS, variates
        h_server = h_server - LAM / CLIENTS * sum(sent.values())
        if name == "fedsmoo":
            s = RHO * unit(sum(sent_mu.values()) / len(cohort))
        w = w + mean
        if name in DUALS:
            w = w - h_server / LAM
        history.append(w)
    return history


ON_QUADRATICS = [name for name in ALGORITHMS if name not in ("dynafed", "oracle")]  # these two need real data


@pytest.mark.parametrize("compressor", ["none", "topk:0.5"])
@pytest.mark.parametrize("algorithm", ON_QUADRATICS)
def test_rounds_against_hand_arithmetic(algorithm, compressor) -> None:
    problem = Problem()
    federation = Federation(problem, algorithm, compressor)
    expected = by_hand(problem, algorithm, identity if compressor == "none" else top_half())
    for cohort, weights in zip(COHORTS, expected, strict=True):
        uploads = federation.round(cohort)
        assert [up.wire_bytes for up in uploads] == [sum(len(p.encode()) for p in up.payloads) for up in uploads]
        np.testing.assert_allclose(federation.weights, weights, rtol=0, atol=2e-6)  # float32, 15 steps of size 1


@pytest.mark.parametrize("algorithm", ON_QUADRATICS)
def test_every_preset_differs_from_the_others(algorithm) -> None:
    """The test above could not tell two presets apart whose rounds were the same."""
    problem = Problem()
    own = by_hand(problem, algorithm, identity)[-1]
    same = [name for name in ON_QUADRATICS if np.abs(by_hand(problem, name, identity)[-1] - own).max() < 1e-3]
    assert same in ([algorithm], ["fedsynsam", "realset"])


@pytest.mark.parametrize("algorithm", ON_QUADRATICS)
def test_clients_in_one_group_or_apart(algorithm) -> None:
    together, apart = (Federation(Problem(), algorithm, "topk:0.5") for _ in range(2))
    for cohort in COHORTS:
        together.round(cohort)
        apart.round(cohort, [[client] for client in cohort])
        np.testing.assert_array_equal(together.weights, apart.weights)


@pytest.mark.parametrize("compressor", ["none", "topk:0.5", "quantize:2"])
def test_variates_of_the_clients_add_up_to_the_servers(compressor) -> None:
    federation = Federation(Problem(), "fedgamma", compressor)
    for cohort in COHORTS:
        federation.round(cohort)
        own = sum(federation.records.get(client)["variate"] for client in range(CLIENTS))
        torch.testing.assert_close(own / CLIENTS, federation.server.state.memory["variate"], rtol=0, atol=2e-6)
        assert own.abs().max() > 0.1


@pytest.mark.parametrize("compressor", ["none", "topk:0.5", "quantize:2"])
def test_duals_add_up_to_the_servers_and_to_what_was_sent(compressor) -> None:
    federation = Federation(Problem(), "fedspeed", compressor)
    sent = torch.zeros(CLIENTS, SIZE)
    for cohort in COHORTS:
        for up in federation.round(cohort):
            sent[up.client_id] += up.payload.decompress()
        duals = torch.stack([federation.records.get(client)["dual"] for client in range(CLIENTS)])
        torch.testing.assert_close(duals, sent, rtol=0, atol=1e-6)
        torch.testing.assert_close(duals.mean(0), federation.server.state.memory["dual"], rtol=0, atol=1e-6)
    assert duals[:3].abs().max() > 0.1
    assert duals[3].abs().max() == 0, "a client that never took part has none"


@pytest.mark.parametrize(("algorithm", "error"), [("fedsynsam-s", 1e-5), ("fedsynsam-d", 0.03)])
def test_a_descent_is_what_the_gradients_of_the_own_loss_did(algorithm, error) -> None:
    """Exact for variates; for duals but for how far the path from w_t to w_K is from even steps."""
    federation = Federation(Problem(), algorithm, "none")
    for number, cohort in enumerate(COHORTS):
        uploads = federation.round(cohort)
        descents = torch.stack([up.descent for up in uploads])
        expected = -LR * federation.worker.total
        assert (descents - expected).norm() <= error * expected.norm()
        updates = torch.stack([up.payload.decompress() for up in uploads])
        assert number == 0 or (updates - expected).norm() > 0.1 * expected.norm()


def test_updates_that_are_descents_are_not_kept_twice() -> None:
    assert all(up.descent is None for up in Federation(Problem(), "fedsynsam", "none").round([0, 1]))


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn"])
def test_corrections_remove_the_drift_of_heterogeneous_clients(algorithm) -> None:
    """With everybody in each round they converge to the minimum of Σ f_i / N, which FedAvg's fixed point misses."""
    problem, everybody = Problem(), list(range(CLIENTS))
    minimum = (problem.curvatures * problem.minima).sum(0) / problem.curvatures.sum(0)
    plain = Federation(problem, "fedavg", "none", local_steps=10)
    corrected = Federation(problem, algorithm, "none", local_steps=10, prox=1.0)
    for _ in range(150):
        plain.round(everybody)
        corrected.round(everybody)
    assert np.abs(plain.weights - minimum).max() > 0.03
    assert np.abs(corrected.weights - minimum).max() < 1e-4


def test_variates_of_one_client_cancel() -> None:
    """c = c_1, bit for bit: what is left is FedAvg."""
    rounds = {}
    for algorithm in ("scaffold", "fedavg"):
        federation = Federation(Problem(), algorithm, "topk:0.5", clients=1)
        for _ in range(5):
            federation.round([0])
        rounds[algorithm] = federation.weights
    np.testing.assert_array_equal(rounds["scaffold"], rounds["fedavg"])
