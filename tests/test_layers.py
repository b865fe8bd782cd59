"""The house keeps its order: who may import whom, and what `import fedsynsam` must do without."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module may import from its own layer and from the layers below it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "__main__"}),
    frozenset({"fl", "report", "integrations.flower"}),  # built on the public names, as a user's code is
    frozenset({""}),  # fedsynsam/__init__.py, which offers those names
    frozenset({"integrations"}),
    frozenset({"compress", "wire", "optim"}),
    frozenset({"ops"}),
    frozenset({"kernels", "_C"}),
    frozenset({"errors"}),
)


def source_files() -> dict[str, Path]:
    """Return {dotted module name: file} of the package; the folder kernels/ is fedsynsam.kernels."""
    files = {}
    for folder, prefix in ((ROOT / "fedsynsam", ()), (ROOT / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            parts = ["fedsynsam", *prefix, *path.relative_to(folder).with_suffix("").parts]
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = source_files()


def imported_names(module: str, path: Path, code: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything that a module imports, wherever in the file it does."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(code if code is not None else path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from .. import errors` names a module, `from ..errors import X` does not
                full = f"{source}.{alias.name}"
                yield node.lineno, full if full in FILES or full == "fedsynsam._C" else source
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def layer_of(module: str) -> int:
    """Return the number of the layer of a module of the package, 0 at the top; the longest name decides."""
    parts = module.split(".")[1:]
    for head in (".".join(parts[:2]), ".".join(parts[:1])):
        for number, names in enumerate(LAYERS):
            if head in names:
                return number
    raise AssertionError(f"{module} has no layer: put it into one of the folders of the design, or extend LAYERS")


def wrong_imports(module: str, path: Path, code: str | None = None) -> list[str]:
    """Return one line for each import of the module that goes against the arrows."""
    wrong = []
    for line, name in imported_names(module, path, code):
        head = name.split(".")[0]
        if head in ("tests", "benchmarks"):
            wrong.append(f"{path.name}:{line} imports {name}")
        elif head == "kernels":
            wrong.append(f"{path.name}:{line} imports {name}; its installed name is fedsynsam.kernels")
        elif head == "fedsynsam":
            if layer_of(name) < layer_of(module):
                wrong.append(f"{path.name}:{line} imports {name}, which lies above {module}")
            elif name == "fedsynsam._C" and layer_of(module) != layer_of("fedsynsam.ops"):
                wrong.append(f"{path.name}:{line} imports {name}; only fedsynsam.ops may")
    return wrong


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_follow_the_arrows(module: str) -> None:
    assert wrong_imports(module, FILES[module]) == []


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("fedsynsam.ops.x", "from ..wire import Payload"),
        ("fedsynsam.ops.x", "def f():\n    from fedsynsam import compressor"),
        ("fedsynsam.compress.x", "from ..fl.config import RunConfig"),
        ("fedsynsam.wire.x", "from .. import _C"),
        ("fedsynsam.kernels.reference.x", "import fedsynsam.ops.backend"),
        ("fedsynsam.fl.x", "import importlib\nimportlib.import_module('fedsynsam._C')"),
        ("fedsynsam.fl.x", "import benchmarks.run"),
        ("fedsynsam.ops.x", "import kernels.reference"),
        ("fedsynsam.errors", "from .ops import backend"),
        ("fedsynsam", "from fedsynsam.fl import simulation"),
        ("fedsynsam", "from fedsynsam.integrations import flower"),
        ("fedsynsam.integrations.ddp", "from ..fl import config"),
        ("fedsynsam.integrations", "import fedsynsam.integrations.flower"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, code: str) -> None:
    assert len(wrong_imports(module, Path("x.py"), code)) == 1


def test_imports_along_the_arrows_are_free() -> None:
    code = "from . import config\nfrom ..compress import TopK\nfrom ..errors import DataError\nfrom ..ops import topk\n"
    assert wrong_imports("fedsynsam.fl.x", Path("x.py"), code) == []
    code = "from ...fl.evidence import Evidence\nfrom ...compress import TopK\nfrom .grid import CompressedGrid\n"
    assert wrong_imports("fedsynsam.integrations.flower.x", Path("x.py"), code) == []


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_nothing_imports_the_tests(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert not [name for _, name in imported_names(module, path) if name.split(".")[0] == "tests"], path


def run_without(absent: list[str], code: str) -> str:
    """Run `code` in a fresh interpreter in which the modules `absent` cannot be imported; return what it prints."""
    # None in sys.modules is what Python itself uses for "known to be missing": imports fail, find_spec says None.
    prelude = f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", prelude + code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ROUND_TRIP = """
import torch, fedsynsam as fs
from fedsynsam.ops import backend
update = {"w": torch.linspace(-1, 1, 1000).reshape(10, 100), "b": torch.ones(7)}
compressor = fs.compressor("topk:0.05+quantize:4")
payload, _ = compressor.compress(update, compressor.init(update), seed=7)
import hashlib
print(hashlib.sha256(payload.encode()).hexdigest())
"""


@pytest.mark.parametrize("absent", [["triton"], ["fedsynsam._C"], ["triton", "fedsynsam._C"]], ids="+".join)
def test_the_package_works_without(absent: list[str]) -> None:
    """A payload has the same bytes whatever is missing, and the missing part is named with its reason."""
    assert run_without(absent, ROUND_TRIP) == run_without([], ROUND_TRIP)
    for module, backend in (("triton", "triton"), ("fedsynsam._C", "cpu")):
        if module in absent:
            reason = run_without(absent, f"from fedsynsam.ops import backend\nprint(backend.why_not({backend!r}))")
            assert reason.startswith(("Triton is not installed", "the C++ extension is not usable")), reason


def test_without_the_extension_the_reference_is_the_default() -> None:
    code = "import torch\nfrom fedsynsam.ops import backend\nprint(backend.choose('topk', torch.device('cpu')))"
    assert run_without(["fedsynsam._C"], code) == "reference"


def test_importing_the_package_starts_neither_cuda_nor_the_heavy_parts() -> None:
    """Drawing, the command line and data sets are loaded by those who use them."""
    heavy = ("matplotlib", "tyro", "datasets", "flwr", "fedsynsam.fl", "triton.language.core")
    code = f"import fedsynsam, sys, torch\nprint(torch.cuda.is_initialized(), [m for m in {heavy} if m in sys.modules])"
    assert run_without([], code) == "False []"
