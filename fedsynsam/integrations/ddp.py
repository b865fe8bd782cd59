"""A communication hook for DistributedDataParallel: gradients travel as payloads, with error feedback.

    state = fs.DDPState(model, "topk:0.01")
    model = torch.nn.parallel.DistributedDataParallel(model)
    model.register_comm_hook(state, fs.ddp_hook)

Each rank compresses a bucket's gradients on top of its residual, all ranks gather all payloads, and each aggregates
them in rank order: the same mean everywhere, bit for bit. A gather moves R - 1 payloads to each of R ranks, so that the
hook pays where a payload is much smaller than the gradient, and ranks are few or the network slow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..compress import Compressor, State, compressor
from ..compress.state import checked_residual, checked_step
from ..errors import ArgumentError, NonFiniteError, StateError
from ..ops.seeds import row_seed
from ..wire import Payload, aggregate

if dist.is_available():
    # Its functions' defaults are the process group that there is when it is first imported, whose threads then never
    # end. DDP imports it, too, but when the group is there.
    import torch.distributed.nn.functional


class DDPState:
    """What `ddp_hook` keeps of one rank: a residual for each parameter, by name, and the bytes sent so far.

    `model` is the module inside DistributedDataParallel (or that itself); its parameters' names are the keys. Ranks may
    share `seed`: each draws its own roundings. `group` is the process group that DDP uses, by default the world. Save
    `state_dict()` of every rank, each for itself: residuals differ between ranks. A copy has the same group; a state
    with a group cannot be pickled.
    """

    def __init__(self, model: nn.Module, spec: str | Compressor, *, seed: int = 0, group: Any = None) -> None:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.compressor = compressor(spec) if isinstance(spec, str) else spec
        self.seed, self.group = seed, group
        self.bytes_sent = 0
        self._parameters = dict(inner.named_parameters())  # kept, so that no other tensor gets the `id` of one
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._states: dict[tuple[str, ...], State] = {}  # names of a bucket's parameters, in its order -> its state
        self._before: dict[tuple[str, ...], State] = {}  # the same before the last step
        self._spoilt = False  # whether a bucket of the last step became NaN, so that nobody uses the step
        self._loaded: dict[str, Tensor] = {}  # residuals that no bucket has taken over yet
        self._step = 0  # of the next new bucket

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}  # of copied parameters

    def __deepcopy__(self, memo: dict[int, Any]) -> DDPState:
        memo[id(self.group)] = self.group
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    def state_dict(self) -> dict[str, Tensor]:
        """Return `residual/<name>` (float32, the parameter's shape) for all that were trained, and `step`; copies."""
        self.settle()
        tensors = {key: tensor.clone() for key, tensor in self._loaded.items()}
        for state in self._states.values():
            tensors |= state.state_dict()
        step = max([self._step, *(state.step for state in self._states.values())])
        tensors["step"] = torch.tensor(step, device="cpu")
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same rank.

        Raises StateError naming the tensor that the model does not have, that is of another shape, dtype or not finite,
        or that this compressor, which keeps no residual, would drop; what was there before is then still there.
        """
        if "step" not in tensors:
            raise StateError("the state lacks 'step'")
        step, loaded = checked_step(tensors["step"]), dict[str, Tensor]()
        for key, tensor in tensors.items():
            if key == "step":
                continue
            parameter = self._parameters.get(key.removeprefix("residual/"))
            if parameter is None or not key.startswith("residual/"):
                raise StateError(f"the state holds {key!r}, which is no parameter of this model")
            if not self.compressor.residual:
                raise StateError(f"the state holds {key!r}, but {self.compressor} keeps no residual")
            name = key.removeprefix("residual/")
            loaded[key] = checked_residual(name, tensor, tuple(parameter.shape)).view(parameter.shape).clone()
        self._loaded, self._step, self._states, self._before, self._spoilt = loaded, step, {}, {}, False

    def rescale(self, factor: float) -> None:
        """Multiply all residuals by `factor`: by new scale / old scale when the scale of the loss has changed.

        Raises ArgumentError unless `factor` is finite and positive.
        """
        if not 0 < factor < math.inf:
            raise ArgumentError(f"factor is {factor}; expected a finite number above 0")
        self.settle()
        if factor != 1:
            for state in self._states.values():
                state.residual = None if state.residual is None else state.residual * factor
            self._loaded = {name: tensor * factor for name, tensor in self._loaded.items()}

    def compress(self, gradients: dict[str, Tensor], seed: int) -> Payload:
        """Compress a bucket's gradients on top of their residuals.

        A parameter whose gradient is zero keeps its residual: if no rank has used it, DDP drops what is sent of it.
        """
        key = tuple(gradients)
        if key not in self._states:
            self._states[key] = self._state_for(gradients)
        before = self._before[key] = self._states[key]
        idle = _zeros_among(gradients) if before.residual is not None else []
        payload, state = self.compressor.compress(gradients, _without(before, idle), seed=seed)
        for new, old in zip(_residuals(state, idle), _residuals(before, idle), strict=True):
            new.copy_(old)
        self._states[key] = state
        return payload

    def spoil(self) -> None:
        """Note that this step is skipped or has failed: what any bucket sent is not used."""
        self._spoilt = True

    def settle(self) -> None:
        """Between steps: take back what every bucket sent, if the last step was spoilt."""
        if self._spoilt:
            self._states |= self._before
        self._before, self._spoilt = {}, False

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a parameter; ArgumentError if the state was made for another model."""
        try:
            return self._names[id(parameter)]
        except KeyError:
            raise ArgumentError("DDPState was made for another model: it must be the one inside DDP") from None

    def _state_for(self, gradients: dict[str, Tensor]) -> State:
        """The state of a new bucket: DDP lays its buckets out anew after the first step, residuals move along."""
        state = self.compressor.init(gradients)
        for key in [key for key in self._states if set(key) & set(gradients)]:
            left = self._states.pop(key)
            self._before.pop(key, None)
            self._loaded |= {name: tensor for name, tensor in left.state_dict().items() if name != "step"}
            self._step = max(self._step, left.step)
        state.step = self._step
        if state.residual is not None:
            tensors = state.state_dict()
            tensors |= {name: self._loaded.pop(name) for name in list(self._loaded) if name in tensors}
            state.load_state_dict(tensors)
        return state


def ddp_hook(state: DDPState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Replace the bucket's gradients by the mean over ranks of what the ranks' payloads hold.

    A gradient with NaN or infinity on one rank (as loss scaling makes them) gives NaN in that bucket on all ranks, so
    that all of them skip the step; every residual is then as it was before the step. So it is if another rank is gone,
    which raises the process group's error from `backward`.
    """
    if bucket.index() == 0:  # of the next step: buckets come in order
        state.settle()
    buffer, rank, size = bucket.buffer(), dist.get_rank(state.group), dist.get_world_size(state.group)
    names = [state.name_of(parameter) for parameter in bucket.parameters()]
    gradients = dict(zip(names, bucket.gradients(), strict=True))
    with _taken_back_if_it_fails(state):
        blob = _blob(state, gradients, row_seed(state.seed, rank, bucket.index()))
        sent = torch.frombuffer(bytearray(blob), dtype=torch.uint8).to(buffer.device)
        received = [torch.empty_like(sent) for _ in range(size)]
        work = dist.all_gather(received, sent, group=state.group, async_op=True)
    state.bytes_sent += len(blob)

    def finish(gathered: torch.futures.Future[Any]) -> Tensor:
        with _taken_back_if_it_fails(state):
            gathered.value()  # raises if a rank is gone: what `received` holds then, nobody sent
            blobs = [tensor.cpu().numpy().tobytes() for tensor in received]
            if all(map(any, blobs)):
                _write_mean(gradients, blobs, state.compressor.spec)
        # the same on all ranks: a payload that is not there, or a mean that float16 cannot hold
        if not all(map(any, blobs)) or (buffer.dtype == torch.float16 and not bool(torch.isfinite(buffer).all())):
            state.spoil()
            buffer.fill_(torch.nan)
        return buffer

    return work.get_future().then(finish)


if dist.is_available():  # DDP compares the annotations with these types, which a build without it does not have
    ddp_hook.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}


@contextmanager
def _taken_back_if_it_fails(state: DDPState) -> Iterator[None]:
    try:
        yield
    except BaseException:
        state.spoil()
        raise


def _zeros_among(gradients: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold nothing but zeros."""
    extremes = {name: torch.stack(torch.aminmax(tensor)) for name, tensor in gradients.items() if tensor.numel()}
    if not extremes:
        return []
    touched = torch.stack(list(extremes.values())).any(dim=1).tolist()  # the host waits once
    return [name for name, some in zip(extremes, touched, strict=True) if not some]


def _residuals(state: State, names: Sequence[str]) -> list[Tensor]:
    """Views of the residual's parts."""
    if not names or state.residual is None:
        return []
    parts = state.manifest.split(state.residual)
    assert isinstance(parts, dict)
    return [parts[name] for name in names]


def _without(state: State, names: Sequence[str]) -> State:
    """The state with nothing left unsent of `names`."""
    if not names or state.residual is None:
        return state
    state = State(state.manifest, state.residual.clone(), state.step)
    for part in _residuals(state, names):
        part.zero_()
    return state


def _blob(state: DDPState, gradients: dict[str, Tensor], seed: int) -> bytes:
    """The encoded payload; as many zeros if there is none, because the ranks must gather equal lengths."""
    try:
        return state.compress(gradients, seed).encode()
    except NonFiniteError:
        zeros = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        payload, _ = state.compressor.compress(zeros, state.compressor.init(zeros), seed=0)
        return bytes(payload.wire_bytes)


def _write_mean(gradients: dict[str, Tensor], blobs: Sequence[bytes], spec: str) -> None:
    payloads = [Payload.decode(blob, like=gradients, spec=spec) for blob in blobs]
    mean = aggregate(payloads, weights=[1.0] * len(payloads))
    assert isinstance(mean, dict)
    for name, gradient in gradients.items():
        gradient.copy_(mean[name])
