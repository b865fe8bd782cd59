"""Compiles every GPU kernel ahead of time, without a GPU, and shows what each takes: `python -m fedsynsam.kernels.aot`.

Prints a table (kernel, architecture, registers, shared memory, spills) for the Triton kernels and, if nvcc is found,
for csrc/cuda/*.cu. Exit code 1 if a kernel spills registers to memory or fuses a multiplication with an addition in
float32 (which would change bits), 2 if nothing could be compiled. `--csv FILE` keeps the table; `--compare FILE` says
which kernels take other registers, shared memory or spills than in a table kept earlier, which is no error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from . import aot_table
from .aot_table import Usage

if TYPE_CHECKING:
    from .aot_cases import Case

ARCHITECTURES = (80, 90, 100, 120)
NVCC_FLAGS = ("-O3", "-std=c++17", "-fmad=false", "--compiler-options", "-fPIC", "-Xptxas", "-v")


# ---- Triton ----


def compile_case(case: Case, architecture: int) -> Usage:
    """Compile one Triton kernel for one architecture, its pointers and sizes multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    attributes = {place: [["tt.divisibility", 16]] for place in _places(case, ("*", "i"))}
    compiled = triton.compile(
        ASTSource(case.kernel, signature, case.constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": case.num_warps, "enable_fp_fusion": False},
    )
    registers, stack, shared = resources(compiled.asm["cubin"])
    fused = "fma.rn.f32" in compiled.asm["ptx"]
    fault = "spills" if stack else "fuses multiply and add" if fused else ""
    return Usage(case.name, architecture, registers, shared, stack, fault, f"triton {triton.__version__}")


def _places(case: Case, kinds: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """Where the arguments whose type starts with one of `kinds` stand, those within tuples too."""
    for position, name in enumerate(case.kernel.arg_names):
        kind = case.signature.get(name, "")
        if isinstance(kind, tuple):
            yield from ((position, i) for i, each in enumerate(kind) if each.startswith(kinds))
        elif kind.startswith(kinds):
            yield (position,)


def resources(cubin: bytes) -> tuple[int, int, int]:
    """Return registers, bytes of stack and bytes of static shared memory of the one kernel in `cubin`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [cuobjdump(), "-res-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if found is None:
        raise RuntimeError(f"{command[0]} printed no resource usage: {text!r}")
    registers, stack, shared = map(int, found.groups())
    return registers, stack, shared


def cuobjdump() -> str:
    """Return the path of cuobjdump: the one in Triton's wheel, or on PATH."""
    import triton.backends.nvidia

    folders = [str(Path(folder, "bin")) for folder in triton.backends.nvidia.__path__]
    path = shutil.which("cuobjdump", path=os.pathsep.join(folders)) or shutil.which("cuobjdump")
    if path is None:
        raise RuntimeError("cuobjdump is neither in Triton's wheel nor on PATH")
    return path


# ---- CUDA ----


def compile_cuda(source: Path, nvcc: str, architectures: tuple[int, ...]) -> list[Usage]:
    """Compile one .cu file for all architectures and return what ptxas reports of each kernel."""
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-c", *NVCC_FLAGS, f"-I{source.parent.parent}", *targets, str(source)]
        result = subprocess.run(
            [*command, "-o", str(Path(folder, "out.o"))], check=False, capture_output=True, text=True
        )
    if result.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source}:\n{result.stderr}")
    compiler = nvcc_version(nvcc)
    return [usage._replace(compiler=compiler) for usage in parse_ptxas(demangled(result.stderr), source.name)]


def parse_ptxas(report: str, file: str) -> Iterator[Usage]:
    """Yield the usage of each entry function in the output of `ptxas -v`."""
    for part in report.split("Compiling entry function '")[1:]:
        name, architecture = re.match(r"(.*)' for 'sm_(\d+)\w*'", part).groups()  # type: ignore[union-attr]
        stack = max(int(number) for number in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part))
        registers = int(re.search(r"Used (\d+) registers", part).group(1))  # type: ignore[union-attr]
        shared = re.search(r"(\d+) bytes smem", part)
        name = re.sub(
            r"^void |\(.*|fedsynsam::|\(anonymous namespace\)::", "", name.replace("(anonymous namespace)::", "")
        )
        fault = "spills" if stack else ""
        yield Usage(f"{file} {name}", int(architecture), registers, int(shared.group(1)) if shared else 0, stack, fault)


def nvcc_version(nvcc: str) -> str:
    """Return such as `nvcc 13.0.88`."""
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\bV([\d.]+)", said)
    return f"nvcc {found[1]}" if found else "nvcc"


def demangled(text: str) -> str:
    """Return `text` with C++ names readable, if a demangler is installed."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    return subprocess.run([tool], input=text, check=True, capture_output=True, text=True).stdout if tool else text


# ---- the table ----


def usages(folder: Path, architectures: tuple[int, ...]) -> Iterator[Usage]:
    """Yield the usage of every kernel that can be compiled here, in a fixed order; say on stderr what cannot.

    As many compilers run at a time as there are cores.
    """
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        compiled = [
            pool.submit(_compile_nth, place, architecture)
            for place in range(_count_of_cases())
            for architecture in architectures
        ]
        sources, nvcc = sorted(folder.glob("*.cu")), shutil.which("nvcc")
        if nvcc is None or not sources:
            reason = f"no .cu files in {folder}" if nvcc else "nvcc is not on PATH"
            print(f"CUDA kernels left out: {reason}", file=sys.stderr)
        else:
            compiled += [pool.submit(compile_cuda, source, nvcc, architectures) for source in sources]
        try:
            for each in compiled:
                yield from each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _count_of_cases() -> int:
    try:
        from .aot_cases import all_cases
    except ImportError as error:
        print(f"Triton kernels left out: {error}", file=sys.stderr)
        return 0
    return len(all_cases())


def _compile_nth(place: int, architecture: int) -> list[Usage]:
    """`compile_case` of a case by its place, for a kernel cannot be sent to another process."""
    from .aot_cases import all_cases

    return [compile_case(all_cases()[place], architecture)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fedsynsam.kernels.aot", description=__doc__.split("\n")[0])
    default = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
    parser.add_argument("--cuda-sources", type=Path, default=default, help="folder of the .cu files")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="such as 80 90 100 120")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="say what differs from the table in FILE")
    options = parser.parse_args(arguments)
    try:
        before = None if options.compare is None else aot_table.read(options.compare)
    except (OSError, ValueError) as error:
        parser.error(f"--compare: {error}")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("TRITON_INTERPRET is set: kernels would be interpreted, not compiled; unset it", file=sys.stderr)
        return 2
    row = "{:<56} {:>6} {:>10} {:>8} {:>8}  {}"
    print(row.format("kernel", "arch", "registers", "shared", "spilled", "").rstrip())
    found = []
    for usage in usages(options.cuda_sources, tuple(options.arch)):
        found.append(usage)
        print(row.format(usage.kernel, f"sm_{usage.architecture}", *usage[2:6]).rstrip(), flush=True)
    faults = sum(bool(usage.fault) for usage in found)
    print(f"{len(found)} kernels compiled, {faults} refused")
    if before is not None:
        lines = aot_table.differences(before, found)
        print(*(lines or [f"nothing differs from {options.compare}"]), sep="\n")
    if options.csv is not None:
        aot_table.write(found, options.csv)
    return 2 if not found else int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
