"""Compression for federated learning: real bytes on a real wire, fused kernels, and FedSynSAM."""

from .compress import Chain, ChunkTopK, Compressor, Identity, Quantize, State, TopK, Uplink, compressor
from .errors import (
    ArgumentError,
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    FedSynSamError,
    NonFiniteError,
    PayloadError,
    RankError,
    SpecError,
    StateError,
)
from .integrations.ddp import DDPState, ddp_hook
from .ops.backend import use_backend
from .ops.seeds import row_seed
from .optim import SAM
from .wire import Manifest, Payload, aggregate

__version__ = "0.1.0"

__all__ = [
    "SAM",
    "ArgumentError",
    "BackendError",
    "Chain",
    "CheckpointError",
    "ChunkTopK",
    "Compressor",
    "ConfigError",
    "DDPState",
    "DataError",
    "FedSynSamError",
    "Identity",
    "Manifest",
    "NonFiniteError",
    "Payload",
    "PayloadError",
    "Quantize",
    "RankError",
    "SpecError",
    "State",
    "StateError",
    "TopK",
    "Uplink",
    "__version__",
    "aggregate",
    "compressor",
    "ddp_hook",
    "row_seed",
    "use_backend",
]
