"""Runs the Flower app of a folder in this process, without a network: `python flower_example.py FOLDER KEY=VALUE …`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import tomllib
from flower_nodes import Nodes
from flwr.app import Context, RecordDict

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
settings = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
config = settings["config"] | {key: json.loads(value) for key, value in (word.split("=") for word in sys.argv[2:])}
server, client = (
    getattr(importlib.import_module(name.split(":")[0]), name.split(":")[1])
    for name in (settings["components"]["serverapp"], settings["components"]["clientapp"])
)
nodes = Nodes([client] * config["partitions"])
for context in nodes.contexts.values():
    context.run_config = config
server(nodes, Context(77, 1, {}, RecordDict(), config))
if nodes.errors:
    raise SystemExit(f"a client failed: {nodes.errors[0]!r}")
