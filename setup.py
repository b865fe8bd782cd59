"""Build of the C++ extension `fedsynsam._C`: CPU always, CUDA when a compiler is found.

The metadata lives in pyproject.toml. No PyTorch is needed here: the extension takes raw pointers and a stream,
so one build serves every PyTorch version. What decides the build, all from the environment:

    FEDSYNSAM_CUDA                auto (default), 1: must be built, 0: must not
    FEDSYNSAM_CUDA_ARCHS          such as "90" or "80,90"; default: 80, 90, 100, 120 and PTX of the last
    FEDSYNSAM_REQUIRE_EXTENSION   1: a failed compilation fails the installation. Otherwise the package is installed
                                  without the extension (the `reference` backend serves) with a loud warning.
    FEDSYNSAM_JOBS                compilations at once; default: one a core

`fedsynsam/_build.json` in the result records what was built and why something was not; `fedsynsam info` shows it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup
from setuptools.errors import BaseError, CCompilerError, CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))  # also for a plain `python setup.py`, which knows no backend-path

from cuda_toolkit import Toolkit, architectures, compile_command, cuda_mode, find_toolkit  # noqa: E402

JOBS = int(os.environ.get("FEDSYNSAM_JOBS") or os.cpu_count() or 1)
# No contraction, so that every backend gives the same bytes; traps and errno are observed by nobody, and giving them
# up lets loops be vectorized. Never -march=native: wide instructions are chosen at run time.
VALUE_SAFE = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
STRICT = os.environ.get("FEDSYNSAM_REQUIRE_EXTENSION", "0") == "1"


class BuildExtension(build_ext):
    """Builds the extension with the CUDA objects when there is a compiler, and writes down what was built."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.force = True  # else a stale library is reused when only flags or headers have changed
        self.record: dict[str, Any] = {"extension": False, "cuda": None, "openmp": False, "notes": []}

    def run(self) -> None:
        for extension in self.extensions:  # an older library would be loaded in the place of one that failed
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        super().run()
        folder = ROOT / "fedsynsam" if self.inplace else Path(self.build_lib, "fedsynsam")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")

    def build_extension(self, ext: Pybind11Extension) -> None:
        try:
            self._add_openmp(ext)
            self._add_cuda(ext)
            super().build_extension(ext)
        except (CCompilerError, BaseError) as error:
            self.record.update(cuda=None, openmp=False, notes=[])
            self._note(f"the C++ extension was not built: {error}")
            raise  # `ext.optional` decides whether this ends the build
        self.record["extension"] = True

    def _add_openmp(self, ext: Pybind11Extension) -> None:
        """Add the flags of OpenMP, or say that the operations will use one thread."""
        dialects = [(["-fopenmp"], ["-fopenmp"])]
        if sys.platform == "darwin":  # Apple's clang needs the runtime named
            dialects = [(["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
        for compile_flags, link_flags in dialects:
            if self._compiles("#include <omp.h>\nint fss_probe() { return omp_get_max_threads(); }\n", compile_flags):
                ext.extra_compile_args += compile_flags
                ext.extra_link_args += link_flags
                self.record["openmp"] = True
                return
        self._note("the C++ compiler has no OpenMP: the operations run on one thread")

    def _compiles(self, code: str, flags: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(code, encoding="utf-8")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True

    def _add_cuda(self, ext: Pybind11Extension) -> None:
        """Compile csrc/cuda/*.cu and add the objects, as FEDSYNSAM_CUDA says."""
        mode = cuda_mode()
        if mode == "0":
            return self._note("CUDA was not built: FEDSYNSAM_CUDA=0", loud=False)
        if (toolkit := find_toolkit()) is None:
            if mode == "1":
                raise CompileError(
                    "FEDSYNSAM_CUDA=1, but no working nvcc was found in CUDA_HOME, PATH or site-packages; install the "
                    "CUDA toolkit, or let pip build in isolation (without --no-build-isolation), which brings nvcc"
                )
            return self._note("CUDA was not built: no CUDA compiler (nvcc) was found", loud=False)
        try:
            objects = self._compile_cuda(toolkit)
        except CompileError as error:
            if mode == "1" or STRICT:
                raise
            return self._note(f"CUDA was not built: {error}")
        ext.extra_objects += objects
        ext.define_macros += [("FEDSYNSAM_CUDA", "1")]
        ext.include_dirs += toolkit.include_dirs
        ext.library_dirs += toolkit.library_dirs
        ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
        # The static runtime stays private, so that it never meets the shared one that PyTorch brings.
        ext.extra_link_args += ["-Wl,--exclude-libs,ALL"]
        self.record["cuda"] = {"version": toolkit.version, "architectures": architectures(toolkit)}

    def _compile_cuda(self, toolkit: Toolkit) -> list[str]:
        sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(source: Path) -> str:
            target = str(folder / f"{source.stem}.o")
            threads = max(1, JOBS // len(sources))
            command = compile_command(toolkit, str(source), target, [str(ROOT / "csrc")], threads)
            print(" ".join(command), flush=True)
            if (code := subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode) != 0:
                raise CompileError(f"nvcc {toolkit.version} failed on {source.name} with exit code {code}")
            return target

        with ThreadPoolExecutor(max_workers=JOBS) as pool:
            return list(pool.map(compile_one, sources))

    def _note(self, text: str, loud: bool = True) -> None:
        self.record["notes"].append(text)
        frame = "*" * 100
        print(f"{frame}\n*** WARNING: {text}\n{frame}" if loud else text, file=sys.stderr, flush=True)


def extension() -> Pybind11Extension:
    """Return the extension with the flags that every platform takes."""
    sources = sorted([*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")])
    return Pybind11Extension(
        "fedsynsam._C",
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=["csrc"],
        cxx_std=17,
        extra_compile_args=[*VALUE_SAFE, "-O3", "-g0", "-Wall", "-Wextra"],
        optional=not STRICT and cuda_mode() != "1",
    )


ParallelCompile(default=JOBS).install()
setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
