"""From command-line words to typed dataclasses, by tyro; its boxed errors become one `ConfigError` line."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from ..errors import ConfigError
from ..fl.config import RunConfig

Command = TypeVar("Command")

_BOX = re.compile(r"[╭╮╰╯│─]+|^Error parsing (config|settings): ", re.MULTILINE)


def parse(default: Command, argv: Sequence[str], prog: str) -> Command:
    """Return `default` with the options of `argv` put in; `--help` prints and exits, a mistake raises ConfigError."""
    if {"-h", "--help"} & set(argv):
        return tyro.cli(type(default), default=default, args=list(argv), prog=prog)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _wide_terminal():
            return tyro.cli(type(default), default=default, args=list(argv), prog=prog)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(complaint.getvalue())) from None


def defaults_from(argv: Sequence[str]) -> RunConfig:
    """The configuration that the other options change: that of `--config FILE`, else the defaults."""
    path = config_file(argv)
    return RunConfig() if path is None else RunConfig.from_toml(path)


def config_file(argv: Sequence[str]) -> Path | None:
    """The FILE of `--config FILE`, if it is given."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        path = finder.parse_known_args(list(argv))[0].config
    except argparse.ArgumentError:  # "--config" without a value: tyro says so
        path = None
    return None if path is None else Path(path)


def _one_line(box: str) -> str:
    """The message in tyro's box: what stands above its first rule, without the frame."""
    lines = [line for line in box.splitlines() if line.strip()]
    body: list[str] = []
    for line in lines[1:]:
        text = line.strip("│╰╯ ")
        if not text or set(text) <= {"─"}:
            break
        body.append(text)
    return _BOX.sub("", " ".join(body)).strip() or " ".join(_BOX.sub("", box).split())


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Inside, error boxes are wide enough that no value in them is broken over lines."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
