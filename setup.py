"""Build of the C++ extension `fedsynsam._C`: CPU always, CUDA when a compiler is found.

The metadata lives in pyproject.toml. No PyTorch is needed here: the extension takes raw pointers.
"""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

ROOT = Path(__file__).parent

extension = Pybind11Extension(
    "fedsynsam._C",
    sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-ffp-contract=off", "-fopenmp", "-Wall", "-Wextra"],
    extra_link_args=["-fopenmp"],
)

setup(ext_modules=[extension], options={"build_ext": {"force": True}})
