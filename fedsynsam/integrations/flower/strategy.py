"""FedSynSAM (arXiv 2602.11584) as a Flower strategy: FedAvg that learns a synthetic set from its own trajectory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from ...errors import ArgumentError, StateError
from ...fl.algorithm import resolve
from ...fl.config import RunConfig
from ...fl.data import Dataset, Images
from ...fl.evidence import Evidence
from ...fl.labels import LabelMix
from ...fl.synthesis import learn
from ...fl.synthetic import SyntheticSet
from ...wire import Manifest, Payload
from .grid import CompressedGrid
from .records import RECORD

SYNTHETIC = f"{RECORD}.synthetic"  # the ArrayRecord with the set
IMAGES, LABELS = "images", "labels"
RHO, BETA, VERSION = f"{RECORD}-rho", f"{RECORD}-beta", f"{RECORD}-version"  # in the strategy's ConfigRecord


class FedSynSAM(FedAvg):
    """FedAvg whose clients perturb their steps along the gradient of a synthetic set, learned on the server.

    Rounds 1 to R are FedAvg. Then, and every `synthetic_every` rounds, the set is learned from the global weights of
    the rounds and the payloads that led from one to the next, and sent to every node that has not got it yet (images
    and soft labels as float32). Clients train with `LocalSynSAM`; `start` must be given a `CompressedGrid` (of any
    spec, `none` included), whose payloads the strategy keeps.

    model: a module with parameters only (no buffers), whose `state_dict()` is the initial ArrayRecord.
    image_shape: channels, height, width. classes: their number. low, high: the values that a pixel can take after
    normalisation. rho: radius of the perturbation. config: the simulator's options; of these count synthetic_start (R),
    the other synthetic_*, beta and seed. The rest are FedAvg's.

    Raises ArgumentError for a model with buffers or a parameter without a dimension, arrays that are not the model's,
    and a grid that keeps no payloads.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        low: float,
        high: float,
        rho: float = 0.05,
        config: RunConfig | None = None,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self._model, self._names = model, [name for name, _ in model.named_parameters()]
        if self._names != list(model.state_dict()):
            raise ArgumentError("the model holds buffers or tied parameters; FedSynSAM needs one whose state is its "
                                "parameters (GroupNorm in the place of BatchNorm, say)")  # fmt: skip
        if bare := [name for name, parameter in model.named_parameters() if parameter.dim() == 0]:
            raise ArgumentError(f"the parameter {bare[0]!r} has no dimension: it is sent beside the payload, and "
                                "FedSynSAM learns from the payload; give it the shape [1]")  # fmt: skip
        channels, height, width = image_shape
        none = Images(torch.empty(0, height, width, channels), torch.zeros(channels), torch.ones(channels))
        self._images = Dataset(
            name="flower", classes=classes, x_train=none, x_test=none,
            y_train=torch.empty(0, dtype=torch.int64), y_test=torch.empty(0, dtype=torch.int64),
            low=torch.full((channels,), float(low)), high=torch.full((channels,), float(high)),
        )  # fmt: skip
        self._rho, self._config = rho, resolve(config if config is not None else RunConfig())
        self._evidence = Evidence(self._config.synthetic_window, LabelMix.of(model, classes))
        self._grid: CompressedGrid | None = None
        self._weights: Tensor | None = None
        self._record: ArrayRecord | None = None
        self._version = 0  # the round after which the set was learned
        self._holders: dict[int, int] = {}  # node -> version that it has
        self.synthetic: SyntheticSet | None = None
        """The set in use; None during the first R rounds."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg does, with the radius, and the set for those who lack it."""
        if not isinstance(grid, CompressedGrid):
            raise ArgumentError("FedSynSAM learns from payloads: start it with CompressedGrid(grid, SPEC); "
                                "the spec may be 'none'")  # fmt: skip
        self._grid, self._weights = grid, self._flat(arrays)
        if not self._evidence.weights:
            self._evidence.add(server_round - 1, self._weights)
        if self._record is not None:
            config.update({RHO: self._rho, BETA: self._config.beta, VERSION: self._version})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            if self._record is not None and self._holders.get(message.metadata.dst_node_id) != self._version:
                message.content = RecordDict({**message.content, SYNTHETIC: self._record})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg does; then note the step, and learn the set when it is due."""
        if self._grid is None or self._weights is None:
            raise StateError("aggregate_train needs the round's configure_train before it")
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        for reply in replies:
            if reply.has_error():
                self._holders.pop(reply.metadata.src_node_id, None)
            elif self._record is not None:
                self._holders[reply.metadata.src_node_id] = self._version
        weights = self._weights if arrays is None else self._flat(arrays)
        payloads = self._grid.payloads
        self._evidence.add(server_round, weights, (_vector(payloads[node]) for node in sorted(payloads)))
        if self._is_due(server_round) and self._evidence.rounds:
            self.synthetic, _ = learn(
                self._config, self._model, self._images, self._evidence, self.synthetic, server_round
            )
            images, labels = self.synthetic.batch
            self._record = ArrayRecord({IMAGES: Array(images.numpy()), LABELS: Array(labels.numpy())})
            self._version = server_round
        return arrays, metrics

    def _is_due(self, server_round: int) -> bool:
        since, every = server_round - self._config.synthetic_start, self._config.synthetic_every or 0
        return since == 0 or (since > 0 and every > 0 and since % every == 0)

    def _flat(self, arrays: ArrayRecord) -> Tensor:
        """The arrays as one vector [P] in the order of the model's parameters."""
        if list(arrays) != self._names:
            raise ArgumentError(f"the arrays are {', '.join(arrays)[:200]}; expected those of the model's "
                                f"state_dict(), in its order: {', '.join(self._names)[:200]}")  # fmt: skip
        return torch.cat([torch.from_numpy(array.numpy()).float().reshape(-1) for array in arrays.values()])


def _vector(payload: Payload) -> Tensor:
    """What the payload holds as one vector [P], as the evidence wants it."""
    flat = Payload(payload.spec, Manifest((("", (payload.num_elements,)),)), payload.tensors)
    return cast(Tensor, flat.decompress())
