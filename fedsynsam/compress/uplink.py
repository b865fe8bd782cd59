"""A sender with a memory, for code that wants no functional state."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..ops.seeds import row_seed
from ..wire.manifest import Like, Update
from .base import Compressor
from .compressors import compressor


class Uplink:
    """Turns one sender's updates into bytes and keeps what they leave unsent.

        uplink = fs.Uplink("topk:0.01", like=model, seed=client_id)
        blob = uplink.encode(update)  # the receiver: fs.Payload.decode(blob, like=model)

    `like` is an update, a module whose parameters the updates are for, or a Manifest. Give every sender its own `seed`.
    Save `state_dict()` (tensors by name, as safetensors keeps them) and load it after a restart: nothing is lost then.
    """

    def __init__(self, spec: str | Compressor, like: Like, *, seed: int = 0) -> None:
        self.compressor = compressor(spec) if isinstance(spec, str) else spec
        self._state = self.compressor.init(like)
        self._seed = row_seed(seed, 0, 0)

    def encode(self, update: Update) -> bytes:
        """Return the bytes of the payload of `update` on top of what was left unsent.

        Raises what `Compressor.compress` does; the memory is then as it was.
        """
        payload, state = self.compressor.compress(update, self._state, seed=self._seed)
        blob = payload.encode()
        self._state = state
        return blob

    def state_dict(self) -> dict[str, Tensor]:
        """Return `residual/<name>` (float32) for every tensor, and `step`; copies."""
        return self._state.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict`; StateError names the tensor that does not fit."""
        self._state.load_state_dict(tensors)
