"""The residual's file: what it survives, and what is refused with a word on what to do."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr.serverapp.strategy", reason="Flower is not installed; .ci/run has an environment with it")

from flower_nodes import Nodes, client_app, record
from flwr.app import Message, RecordDict
from safetensors import safe_open

import fedsynsam as fs
from fedsynsam.integrations.flower import CompressedGrid, CompressionMod

SPEC = "topk:0.1"
MODEL = {"w": np.zeros((20, 10), dtype=np.float32)}


def nodes(configured: Path | None, model: dict[str, np.ndarray] = MODEL, **options: object) -> Nodes:
    step = {name: np.random.default_rng(1).standard_normal(a.shape).astype(np.float32) for name, a in model.items()}
    return Nodes(
        [client_app(lambda a, m: {n: a[n] + step[n] for n in a}, [CompressionMod(SPEC, **options)])], configured
    )


def ask(inner: Nodes, model: dict[str, np.ndarray] = MODEL) -> Message:
    content = RecordDict({"arrays": record(model)})
    (reply,) = CompressedGrid(inner, SPEC).send_and_receive([Message(content, dst_node_id=11, message_type="train")])
    return reply


def test_the_file_is_safetensors_and_small(tmp_path: Path) -> None:
    ask(nodes(tmp_path / "new" / "folder"))
    (path,) = (tmp_path / "new" / "folder").iterdir()
    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
    assert shapes.keys() == {"residual/w", "step", "pending"}
    assert shapes["residual/w"] == [20, 10]


def test_a_crash_while_writing_leaves_the_old_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = nodes(tmp_path)
    ask(inner)
    path = tmp_path / "node-0.safetensors"
    before = path.read_bytes()

    def crash(self: Path, target: Path) -> None:
        raise OSError("the power went out")

    monkeypatch.setattr(Path, "replace", crash)
    assert ask(inner).has_error(), "a reply left the node although its memory was not written"
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert not ask(inner).has_error()
    assert path.read_bytes() != before


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_named(how: str, tmp_path: Path) -> None:
    inner = nodes(tmp_path)
    ask(inner)
    path = tmp_path / "node-0.safetensors"
    blob = bytearray(path.read_bytes())
    if how == "flipped":
        blob[-400] ^= 1
    path.write_bytes({"cut": blob[:-10], "flipped": blob, "empty": b"", "foreign": b"not ours" * 20}[how])
    assert ask(inner).has_error()
    (error,) = inner.errors
    assert isinstance(error, fs.StateError)
    assert str(error).startswith(f"{path} cannot be used (")
    assert "remove it, or choose another folder" in str(error)


def test_the_file_of_another_model_is_refused(tmp_path: Path) -> None:
    ask(nodes(tmp_path))
    other = {"w": np.zeros((5, 5), dtype=np.float32)}
    inner = nodes(tmp_path, other)
    assert ask(inner, other).has_error()
    assert "'residual/w' has the shape [20, 10], but tensor 'w' has [5, 5]" in str(inner.errors[0])


def test_another_run_begins_anew_unless_it_is_told_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    ask(nodes(tmp_path))

    def steps() -> int:
        with safe_open(tmp_path / "node-0.safetensors", "pt") as file:
            return int(file.get_tensor("step"))

    monkeypatch.setattr(TaskIdentity, "_run_id", 78)
    ask(nodes(tmp_path, carry_over=True))
    assert steps() == 2
    monkeypatch.setattr(TaskIdentity, "_run_id", 79)
    with caplog.at_level(logging.WARNING, "flwr.fedsynsam"):
        ask(nodes(tmp_path))
    assert steps() == 1
    assert "is of another run (78) and begins anew; carry_over=True would go on from it" in caplog.text


def test_a_folder_needs_a_name_for_the_node(tmp_path: Path) -> None:
    inner = nodes(tmp_path)
    del inner.contexts[11].node_config["partition-id"]
    trained = []
    inner.apps[11] = client_app(lambda a, m: trained.append(1) or a, [CompressionMod(SPEC)])
    assert ask(inner).has_error()
    assert isinstance(inner.errors[0], fs.ArgumentError)
    assert "--node-config 'partition-id=N'" in str(inner.errors[0])
    assert not trained, "found out only after the training"


def test_who_runs_the_node_decides_on_the_folder(tmp_path: Path) -> None:
    ask(nodes(None, folder=tmp_path / "of the app"))
    assert [path.name for path in tmp_path.iterdir()] == ["of the app"]
    ask(nodes(tmp_path / "of the node", folder=tmp_path / "unused"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of the app", "of the node"]
