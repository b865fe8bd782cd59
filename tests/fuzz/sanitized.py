"""Runs the corpus through the C++ extension built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/fuzz/sanitized.py [SECONDS]

Builds csrc into a temporary folder with g++, loads it in the place of fedsynsam._C in a process of its own, makes
passes of small networks with each instruction set, and replays tests/fuzz/corpus; with SECONDS it goes on with random
changes of its inputs for as long.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-strict-aliasing", *SANITIZERS)


def build(folder: Path) -> Path:
    """Compile the extension with the sanitizers; return the shared object."""
    import pybind11

    includes = [f"-I{path}" for path in (ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]

    def compiled(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        subprocess.run(["g++", *FLAGS, *includes, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    library = folder / "_C.so"
    subprocess.run(["g++", "-shared", "-fopenmp", *SANITIZERS, *objects, "-o", str(library)], check=True)
    return library


def networks(module: ModuleType) -> None:
    """Every pass, and local steps, of networks whose sizes are no multiples of anything."""
    import torch

    from fedsynsam.ops.local_steps import Source, StoredBatches, local_steps
    from fedsynsam.ops.network import SmallNetwork

    shapes = (
        (SmallNetwork(((1, 8, 5), (8, 16, 5)), ((256, 128), (128, 10))), (1, 28, 28)),
        (SmallNetwork(((3, 5, 3),), ((120, 37), (37, 7))), (3, 11, 15)),
        (SmallNetwork((), ((48, 33), (33, 4))), (3, 4, 4)),
    )
    for name in module.network_instruction_sets():
        assert module.network_select_instruction_set(name)
        for network, shape in shapes:
            size = sum(b * (a * k * k + 1) for a, b, k in network.convolutions)
            weights = torch.randn(size + sum(b * (a + 1) for a, b in network.dense), requires_grad=True)
            for count in (1, 33, 70):
                images = torch.randn(count, *shape, requires_grad=True)
                labels = torch.randint(network.dense[-1][1], (count,))
                network.evaluate(weights, images, labels)
                gradient = network.differentiable_gradient(weights, images, labels, torch.rand(count), 2)
                gradient.square().sum().backward()
                stored = torch.randint(256, (5, *shape[1:], shape[0]), dtype=torch.uint8)
                known = torch.randint(network.classes, (5,))
                batches = StoredBatches(
                    stored, torch.zeros(shape[0]), torch.ones(shape[0]), known, torch.randint(5, (2, count))
                )
                row = weights.detach()[None].clone()
                for source in (Source(), Source(own=True, shared=(images.detach(), labels), beta=0.5)):
                    buffers = {"gradient": torch.empty_like(row), "ahead": torch.empty_like(row)}
                    local_steps(network, row, batches, source, rho=0.1, lr=0.01, **buffers)


def replay(library: Path, seconds: float) -> None:
    """Load the library as fedsynsam._C and run the corpus, then changed inputs."""
    spec = importlib.util.spec_from_file_location("fedsynsam._C", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fedsynsam._C"] = module
    sys.path.insert(0, str(Path(__file__).parent))
    import payload

    from fedsynsam.ops import backend

    assert backend.extension is module, "another extension was loaded"
    networks(module)
    inputs = [*payload.seeds(), *(path.read_bytes() for path in sorted(CORPUS.iterdir()))]
    for data in inputs:
        payload.one_input(data)
    chance, runs, end = random.Random(0), len(inputs), time.monotonic() + seconds
    while time.monotonic() < end:
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.choice((1, 1, 2, 4))):
            if len(data) > 1:
                data[chance.randrange(1, len(data))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        payload.one_input(bytes(data))
        runs += 1
    print(f"{runs} inputs through the sanitized extension, no fault")


def runtime(name: str) -> str:
    """The path of a sanitizer's runtime, which has to be loaded before Python's own libraries."""
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        runtimes = [runtime(name) for name in ("libasan.so", "libubsan.so")]
        environment = {**os.environ, "LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
        command = [sys.executable, __file__, "--replay", str(library), str(seconds)]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--replay"]:
        replay(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        sys.exit(main())
