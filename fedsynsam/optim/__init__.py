"""Optimizers for sharpness-aware training."""

from .sam import SAM

__all__ = ["SAM"]
