"""What every test session says about itself."""

from __future__ import annotations

import os

import emulation
import torch

os.environ["FEDSYNSAM_EMULATION_SEED"] = str(emulation.SEED)  # so that processes of pytest-xdist have the same


def pytest_report_header() -> list[str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: tests that need one are skipped"
    return [f"thread order of emulated CUDA kernels: FEDSYNSAM_EMULATION_SEED={emulation.SEED}", f"CUDA device: {gpu}"]
