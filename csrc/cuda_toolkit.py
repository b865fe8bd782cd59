"""Finds the CUDA compiler and says how to call it. Used by the build only (setup.py, build_backend.py, .ci).

`nvcc` on PATH may be a wrapper script far away from its toolkit, and the wheels of the compiler lie in
site-packages, so the folders are not guessed from the location of `nvcc`: `nvcc --dryrun` names them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The five wheels that together are a working compiler, kept to one minor version so that their parts match.
WHEELS = tuple(
    f"{name}>=13.0,<13.1"
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-cccl", "nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-nvvm")
)
ARCHITECTURES = ("80", "90", "100", "120")  # A100, H100, B200, RTX 50; PTX of the last serves what comes later.
FLAGS = ("-O3", "-std=c++17", "-fmad=false")  # No contraction: the bytes must equal those of the other backends.


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler that answered, with the folders that it told of."""

    nvcc: str
    version: str
    include_dirs: tuple[str, ...]
    library_dirs: tuple[str, ...]
    architectures: frozenset[str]  # those it can make machine code for, such as "90"


def cuda_mode() -> str:
    """Return FEDSYNSAM_CUDA: `auto` (the default: CUDA if a compiler is found), `1` (must) or `0` (not)."""
    mode = os.environ.get("FEDSYNSAM_CUDA", "auto").strip().lower() or "auto"
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"FEDSYNSAM_CUDA={mode!r} is not understood; use auto, 1 or 0")
    return mode


def find_toolkit() -> Toolkit | None:
    """Return the first usable toolkit of: $CUDA_HOME, $CUDA_PATH, PATH, and the wheels in site-packages."""
    candidates = [Path(os.environ[name], "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if (on_path := shutil.which("nvcc")) is not None:
        candidates.append(Path(on_path))
    for entry in sys.path:
        candidates.extend(sorted(Path(entry or ".").glob("nvidia/*/bin/nvcc"), reverse=True))
    for nvcc in candidates:
        if nvcc.is_file() and (toolkit := _ask(str(nvcc))) is not None:
            return toolkit
    return None


def architectures(toolkit: Toolkit) -> list[str]:
    """Return the architectures to compile for: $FEDSYNSAM_CUDA_ARCHS ("90" or "80,90"), else all known ones."""
    if wanted := os.environ.get("FEDSYNSAM_CUDA_ARCHS", "").replace(";", ",").replace(" ", ","):
        chosen = [word.removeprefix("sm_") for word in wanted.split(",") if word]
        if unknown := [word for word in chosen if word not in toolkit.architectures]:
            known = ", ".join(sorted(toolkit.architectures, key=_architecture_order))
            raise SystemExit(f"FEDSYNSAM_CUDA_ARCHS: nvcc {toolkit.version} cannot compile {unknown}; it knows {known}")
        return chosen
    return [word for word in ARCHITECTURES if word in toolkit.architectures]


def compile_command(toolkit: Toolkit, source: str, target: str, include_dirs: list[str], threads: int) -> list[str]:
    """Return the plain `nvcc -c` command for one .cu file: machine code for each architecture, PTX of the last."""
    archs = architectures(toolkit)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    includes = [f"-I{folder}" for folder in include_dirs]
    host = ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
    return [toolkit.nvcc, "-c", *FLAGS, *includes, *host, *codes, f"--threads={threads}", source, "-o", target]


def _ask(nvcc: str) -> Toolkit | None:
    """Return what `nvcc` says about itself, or None if it does not run (a broken wrapper, another platform)."""
    try:
        dryrun = _run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull])
        codes = _run([nvcc, "--list-gpu-code"])
        version = re.search(r"\bV(\d+(?:\.\d+)+)", _run([nvcc, "--version"]))
    except (OSError, subprocess.CalledProcessError):
        return None
    said = dict(re.findall(r"^#\$ (TOP|INCLUDES|SYSTEM_INCLUDES|LIBRARIES)=(.*)$", dryrun, flags=re.MULTILINE))
    if "TOP" not in said or version is None:
        return None
    top = Path(said["TOP"]).resolve()
    includes = [word[2:] for word in shlex.split(said.get("INCLUDES", "")) if word.startswith("-I")]
    libraries = [word[2:] for word in shlex.split(said.get("LIBRARIES", "")) if word.startswith("-L")]
    libraries += [str(top / "lib64"), str(top / "lib")]  # the wheels have `lib`, which their nvcc does not name
    return Toolkit(
        nvcc=nvcc,
        version=version[1],
        include_dirs=_resolved(includes, "cuda_runtime.h"),
        library_dirs=_resolved(libraries, "libcudart_static.a"),
        architectures=frozenset(re.findall(r"^sm_(\w+)$", codes, flags=re.MULTILINE)),
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout + done.stderr


def _resolved(folders: list[str], holding: str) -> tuple[str, ...]:
    """Return the folders that hold the file `holding`, resolved, without repeats, in order."""
    return tuple(dict.fromkeys(str(Path(folder).resolve()) for folder in folders if Path(folder, holding).is_file()))


def _architecture_order(name: str) -> tuple[int, str]:
    digits = re.match(r"\d+", name)
    return (int(digits[0]) if digits else 0, name)
