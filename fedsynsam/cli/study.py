"""What a comparison compares: the lists of the command line, or the same in the table [compare] of a study file."""

from __future__ import annotations

import difflib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..fl.config import ALGORITHMS, RunConfig, read_toml
from ..report.groups import CHANGES_NOTHING

TABLE = ("algorithms", "compressors", "seeds", "rhos", "sweep")
LISTS = {"algorithm": "algorithms", "compressor": "compressors", "seed": "seeds"}  # settings with a list of their own


@dataclass(frozen=True)
class Sweep:
    """A setting, and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]


def compare_table(path: Path | None) -> dict[str, Any]:
    """The table [compare] of the TOML file at `path`, as the words of the command line; {} where there is none."""
    table = {} if path is None else read_toml(path).get("compare", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: compare is {table!r}; expected a table [compare]")
    for key in table:
        if key not in TABLE:
            close = difflib.get_close_matches(key, TABLE, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(TABLE)}"
            raise ConfigError(f"{path}: unknown key {key!r} in [compare]; {hint}")
    if isinstance(table.get("sweep"), dict) and len(table["sweep"]) != 1:
        raise ConfigError(f"{path}: sweep in [compare] has {len(table['sweep'])} settings; give one, such as alpha")
    return {key: _words(value) for key, value in table.items()}


def _words(value: Any) -> str:
    """A list as `a,b,` (the comma at the end tells a list of one from a number), a table as `key=a,b,`."""
    if isinstance(value, list):
        return "".join(f"{item}," for item in value)
    if isinstance(value, dict):
        return ",".join(f"{key}={_words(item)}" for key, item in value.items())
    return str(value)


def split_specs(text: str) -> list[str]:
    """Split a comma list of specs at the commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def algorithms_of(text: str) -> list[str]:
    """The names in a comma list of algorithms, each once."""
    names = _split(text)
    for name in names:
        if name not in ALGORITHMS:
            raise ConfigError(f"algorithms: unknown value {name!r}; known: {', '.join(ALGORITHMS)}")
    if not names:
        raise ConfigError("algorithms: the list is empty")
    return list(dict.fromkeys(names))


def seeds_of(text: str) -> list[int]:
    """The seeds of `3` (0, 1, 2) or `3,5` or `3,` (3 alone)."""
    try:
        seeds = [int(part) for part in _split(text)]
    except ValueError:
        raise ConfigError(f"seeds: {text!r} is neither a number of seeds nor a comma list of them") from None
    if "," not in text and len(seeds) == 1:
        seeds = list(range(seeds[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds: {text!r} must give at least one seed, none negative, none twice")
    return seeds


def rhos_of(text: str) -> dict[str, float]:
    """The radii of `fedsam=0.1,fedsynsam=0.2`."""
    rhos: dict[str, float] = {}
    for part in _split(text):
        name, _, value = (word.strip() for word in part.partition("="))
        try:
            radius = float(value)
        except ValueError:
            raise ConfigError(f"rhos: {part!r} is not ALGORITHM=NUMBER") from None
        if name not in ALGORITHMS:
            raise ConfigError(f"rhos: unknown algorithm {name!r}; known: {', '.join(ALGORITHMS)}")
        rhos[name] = radius
    return rhos


def sweep_of(text: str) -> Sweep | None:
    """The setting and the values of `alpha=0.05,0.1`; None for an empty text."""
    if not text.strip():
        return None
    name, equals, values = text.partition("=")
    key = name.strip().replace("-", "_")
    kinds = get_type_hints(RunConfig)
    if not equals or not _split(values) or "=" in values:
        raise ConfigError(f"sweep: {text!r} is not KEY=VALUE,VALUE… of one setting, such as alpha=0.05,0.1,0.5")
    if key in LISTS:
        raise ConfigError(f"sweep: {key} has a list of its own; give {LISTS[key]} instead")
    if key in CHANGES_NOTHING:
        raise ConfigError(f"sweep: {key} changes no result of a run; sweep a setting that does, such as alpha")
    if key not in kinds:
        close = difflib.get_close_matches(key, kinds, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known settings: {', '.join(kinds)}"
        raise ConfigError(f"sweep: unknown setting {key!r}; {hint}")
    found = tuple(_typed(key, kinds[key], value) for value in _split(values))
    if len(set(found)) != len(found):
        raise ConfigError(f"sweep: {text!r} gives a value twice")
    return Sweep(key, found)


def _typed(key: str, kind: Any, text: str) -> Any:
    """`text` as the type of a setting; its range is checked with the whole configuration."""
    allowed = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    try:
        return next(one for one in (int, float, str) if one in allowed)(text)
    except ValueError:
        expected = "a whole number" if int in allowed else "a number"
        raise ConfigError(f"sweep: {key}={text!r} is not {expected}") from None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
