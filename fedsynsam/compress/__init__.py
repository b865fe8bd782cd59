"""Compressors: updates in, payloads out, and the state that is kept between."""

from .base import Compressor
from .compressors import Chain, ChunkTopK, Identity, Quantize, TopK, compressor
from .state import State
from .uplink import Uplink

__all__ = ["Chain", "ChunkTopK", "Compressor", "Identity", "Quantize", "State", "TopK", "Uplink", "compressor"]
