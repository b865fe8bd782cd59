"""Flower as it is deployed: a SuperLink and two SuperNodes on the loopback, a SuperNode killed, and `flwr run`."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr.serverapp.strategy", reason="Flower is not installed; .ci/run has an environment with it")

from safetensors.numpy import load_file

from benchmarks.flower.processes import SuperLink, alive, descendants

pytestmark = pytest.mark.slow
APPS = Path(__file__).parent
sys.path.insert(0, str(APPS / "deployed"))
from constant import SIZE, update  # noqa: E402

EXAMPLE = Path(__file__).parents[3] / "examples" / "flower"
SPEC = "topk:0.01"
LIMIT = 300.0  # seconds; a busy machine takes its time to start processes


def wait_for(path: Path, link: SuperLink) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > end:
            raise AssertionError(f"{path.name} did not appear\n{link.logs()}")
        time.sleep(0.1)


def node_id(link: SuperLink, partition: int) -> str:
    return re.findall(r"SuperNode ID: (\d+)", link.logs(f"supernode-{partition}", tail=10**6))[-1]


def test_a_killed_node_forgets_nothing(tmp_path: Path) -> None:
    """kill -9 at the worst moment: the residual is written, the reply has not left.

    Everything that the clients trained in five rounds is what arrived at the server and what they keep, although node 0
    dies in round 3 and comes back with another node id; and the wire carries what the payloads take, not the model.
    """
    rounds, residuals = 5, tmp_path / "residuals"
    with SuperLink(tmp_path / "link") as link:
        for partition in (0, 1):
            link.start_node(partition, 2, {"fedsynsam-folder": str(residuals)})
        (tmp_path / "pause-3").touch()
        result = tmp_path / "result.json"
        options = {"rounds": rounds, "spec": SPEC, "folder": str(tmp_path), "result": str(result)}
        run = link.submit(APPS / "deployed", options)
        wait_for(tmp_path / "paused", link)
        up = link.proxies[0].up
        first = node_id(link, 0)
        (tmp_path / "hang-0").touch()
        (tmp_path / "pause-3").unlink()
        wait_for(tmp_path / "hanging", link)
        link.kill_node(0)
        (tmp_path / "dead").write_text(first)
        link.start_node(0, 2, {"fedsynsam-folder": str(residuals)})
        replies = link.wait(run, result, LIMIT)["replies"]
        assert node_id(link, 0) != first
        kept = [load_file(residuals / f"node-{partition}.safetensors") for partition in (0, 1)]
    assert replies == [2, 2, 1, 2, 2]
    assert [int(state["step"]) for state in kept] == [rounds, rounds]
    arrived = np.load(tmp_path / "arrived.npy") + sum(state["residual/w"].astype(np.float64) for state in kept)
    trained = rounds * (update(0).astype(np.float64) + update(1))
    np.testing.assert_allclose(arrived, trained, rtol=0, atol=1e-5)
    assert np.abs(kept[0]["residual/w"]).max() > 0.01, "the residual is so small that its loss would not show"
    payload = len(kept[0]["pending"])
    assert 2 * payload < up < 2 * 4 * SIZE / 8


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with SuperLink(tmp_path / "link") as link:
        link.start_node(0, 1)
        time.sleep(5.0)  # until each has started its SuperExec
        started = [pid for process in (link._link, link.nodes[0]) for pid in (process.pid, *descendants(process.pid))]
        assert len(started) > 2, "nothing but the two was started: the test shows nothing"
    running = [pid for pid in started if alive(pid)]
    assert running == []


def test_without_the_mod_the_wire_carries_the_model(tmp_path: Path) -> None:
    """The same app without compression, for scale: two rounds send the weights twice."""
    with SuperLink(tmp_path / "link") as link:
        for partition in (0, 1):
            link.start_node(partition, 2)
        result = tmp_path / "result.json"
        run = link.submit(APPS / "deployed", {"rounds": 2, "folder": str(tmp_path), "result": str(result)})
        assert link.wait(run, result, LIMIT) == {"replies": [2, 2]}
        assert all(2 * 4 * SIZE < link.proxies[partition].up < 3 * 4 * SIZE for partition in (0, 1))


def test_flwr_run_in_simulation(tmp_path: Path) -> None:
    """The example, as `flwr run` simulates it: no reply fails, and it learns."""
    with SuperLink(tmp_path / "link", simulated=True) as link:
        result = tmp_path / "result.json"
        options = {"rounds": 3, "partitions": 4, "local-steps": 10, "result": str(result)}
        run = link.submit(EXAMPLE / "after", options, "num-supernodes=4 client-resources-num-cpus=1")
        accuracies = link.wait(run, result, LIMIT)
    assert sorted(accuracies) == ["0", "1", "2", "3"]
    assert accuracies["3"] > accuracies["0"] + 0.1
    assert json.loads(result.read_text()) == accuracies
