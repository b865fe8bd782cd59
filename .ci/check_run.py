"""Check the folder of a run: `check_run.py FOLDER ROUNDS`."""

import json
import math
import sys
from pathlib import Path

FIELDS = {"round", "test_accuracy", "test_loss", "train_loss", "uplink_bytes", "downlink_bytes", "seconds"}

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
missing = [
    name
    for name in ("config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoint")
    if not (folder / name).exists()
]
if missing:
    raise SystemExit(f"{folder} lacks {', '.join(missing)}")
lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
if len(lines) != rounds:
    raise SystemExit(f"metrics.jsonl has {len(lines)} lines for {rounds} rounds")
for line in lines:
    if absent := FIELDS - line.keys():
        raise SystemExit(f"metrics.jsonl: round {line.get('round')} lacks {sorted(absent)}")
    if not (math.isfinite(line["test_loss"]) and 0 <= line["test_accuracy"] <= 1 and line["uplink_bytes"] > 0):
        raise SystemExit(f"metrics.jsonl: implausible values in {line}")
for name in ("config.json", "summary.json"):
    json.loads((folder / name).read_text(encoding="utf-8"))
if (folder / "curves.png").read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
    raise SystemExit("curves.png is no PNG file")
print(f"{folder.name}: {rounds} rounds, accuracy {lines[-1]['test_accuracy']:.3f}")
