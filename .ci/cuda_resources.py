"""Compile every .cu for every architecture and print registers, shared memory, stack and spills of each kernel.

    cuda_resources.py WORK_FOLDER

Uses the nvcc that the build would use; where there is none, gets its wheels into WORK_FOLDER first.
A kernel that spills or needs a stack fails the check: such memory is traffic that the roofline does not count.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "csrc"))

from cuda_toolkit import ARCHITECTURES, FLAGS, WHEELS, Toolkit, find_toolkit  # noqa: E402

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    flags=re.DOTALL,
)


def toolkit_or_wheels(work: Path) -> Toolkit:
    """Return the machine's toolkit, or the one of the wheels, installed below `work`."""
    if (toolkit := find_toolkit()) is not None:
        return toolkit
    print("no nvcc here: installing its wheels", flush=True)
    target = work / "cuda"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", target, *WHEELS], check=True)
    sys.path.insert(0, str(target))
    if (toolkit := find_toolkit()) is None:
        raise SystemExit("the wheels of nvcc were installed but give no working compiler")
    return toolkit


def resources(toolkit: Toolkit, source: Path, architecture: str, work: Path) -> list[dict[str, str]]:
    """Return ptxas' figures for each kernel of `source`."""
    target = work / f"{source.stem}.sm_{architecture}.cubin"
    command = [toolkit.nvcc, "-cubin", *FLAGS, f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    done = subprocess.run([*command, source, "-o", target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{source.name} does not compile for sm_{architecture}:\n{done.stdout}{done.stderr}")
    return [match.groupdict() for match in ENTRY.finditer(done.stderr)]


def demangled(names: list[str]) -> list[str]:
    """Return the kernels' C++ names without arguments, where binutils is there to tell them."""
    if shutil.which("c++filt") is None or not names:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [
        re.sub(r"^void |\(anonymous namespace\)::|fedsynsam::|\([^()]*\)$", "", name)
        for name in done.stdout.split("\n")
    ]


def main() -> None:
    work = Path(sys.argv[1])
    toolkit = toolkit_or_wheels(work)
    print(f"nvcc {toolkit.version}")
    if missing := [arch for arch in ARCHITECTURES if arch not in toolkit.architectures]:
        print(f"SKIPPED: this nvcc cannot compile for {', '.join(missing)}")
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    if not sources:
        raise SystemExit("no .cu file in csrc/cuda")
    jobs = [(source, arch) for source in sources for arch in ARCHITECTURES if arch in toolkit.architectures]
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda job: resources(toolkit, *job, work), jobs))
    bad = []
    print(f"{'file':<18}{'arch':>5}{'regs':>6}{'smem':>8}{'stack':>7}{'spills':>8}  kernel")
    for (source, arch), kernels in zip(jobs, results, strict=True):
        if not kernels:
            raise SystemExit(f"{source.name}: ptxas reported no kernel for sm_{arch}")
        for kernel, name in zip(kernels, demangled([k["name"] for k in kernels]), strict=False):
            shared = re.search(r"(\d+) bytes smem", kernel["rest"])
            spills = int(kernel["stores"]) + int(kernel["loads"])
            smem = shared[1] if shared else "0"
            print(f"{source.name:<18}{arch:>5}{kernel['registers']:>6}{smem:>8}{kernel['stack']:>7}{spills:>8}  {name}")
            if spills or int(kernel["stack"]):
                bad.append(f"{name} (sm_{arch})")
    if bad:
        raise SystemExit(f"kernels that spill or use a stack: {', '.join(bad)}")


if __name__ == "__main__":
    main()
