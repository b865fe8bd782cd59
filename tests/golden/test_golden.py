"""The bytes of today are the bytes of tomorrow, on every backend. See make.py for when they may change."""

import runpy
from pathlib import Path

import pytest

import fedsynsam as fs
from fedsynsam.ops.backend import why_not

HERE = Path(__file__).parent
MAKE = runpy.run_path(str(HERE / "make.py"))


def stored():
    return {path.name: path.read_bytes() for path in HERE.iterdir() if path.suffix in (".safetensors", ".f32")}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_backend_writes_the_golden_bytes(backend):
    if (reason := why_not(backend)) is not None:
        pytest.skip(reason)
    with fs.use_backend(backend):
        fresh = MAKE["golden"]()
    assert sorted(fresh) == sorted(stored())
    assert len(fresh) == 1 + MAKE["STEPS"] * len(MAKE["SPECS"])
    for name, content in stored().items():
        assert fresh[name] == content, name


def test_golden_payloads_decode():
    like = MAKE["update"](0)
    for name, content in stored().items():
        if name.endswith(".safetensors"):
            assert fs.Payload.decode(content, like=like).encode() == content
