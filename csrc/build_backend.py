"""The build backend (PEP 517): setuptools, plus the CUDA compiler as wheels when it is asked for and missing.

`FEDSYNSAM_CUDA=1 pip install .` on a machine without the CUDA toolkit gets nvcc, its headers and the static
runtime from the package index into pip's temporary build environment. Every other build needs only what
pyproject.toml lists. All remaining hooks are those of setuptools.
"""

from __future__ import annotations

from typing import Any

from cuda_toolkit import WHEELS, cuda_mode, find_toolkit
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def _cuda_wheels() -> list[str]:
    return list(WHEELS) if cuda_mode() == "1" and find_toolkit() is None else []


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what building a wheel needs beyond `build-system.requires`."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_cuda_wheels()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what an editable install needs beyond `build-system.requires`."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_cuda_wheels()]
