"""Compression for federated learning: real bytes on a real wire, fused kernels, and FedSynSAM."""

from .optim import SAM

__all__ = ["SAM"]
