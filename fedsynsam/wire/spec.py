"""Spec strings such as `topk:0.01+quantize:4[norm=l2]`: their grammar and their canonical form.

    spec    = stage | sparsifier "+" quantizer
    stage   = word [":" argument] ["[" name "=" value {"," name "=" value} "]"]

The grammar sits with the wire because every payload carries its spec, and the decoder reads sizes from it;
`fedsynsam.compress` builds the compressors on the same table. A canonical string has the options in the order
of the table, without the defaults, and numbers in their shortest form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import SpecError

MAX_SPEC_LENGTH = 256

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")
_STAGE = re.compile(r"(?P<word>[a-z0-9]+)(:(?P<argument>[^\[\]:]*))?(\[(?P<options>[^\[\]]*)\])?")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a word: its type, the values it may take (in words and as a test) and its default."""

    name: str
    kind: type
    right: str
    legal: Callable[[Any], bool]
    default: Any = None  # None: the parameter is the required argument after the colon

    def checked(self, word: str, value: Any) -> Any:
        """Return `value` as the parameter's type, or raise SpecError naming the word, the value and what is right."""
        if self.kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise SpecError(f"{word}: {self.name}={value!r} is wrong; it must be {self.right}")
        if not self.legal(value):
            raise SpecError(f"{word}: {self.name}={value!r} is out of range; it must be {self.right}")
        return self.kind(value)

    def read(self, word: str, text: str) -> Any:
        """Return the value that `text` spells; SpecError if it does not."""
        value: Any = text
        if self.kind is bool:
            value = {"true": True, "false": False}.get(text, text)
        elif self.kind in (int, float) and _NUMBER.fullmatch(text) and len(text) <= 32:
            value = float(text) if self.kind is float or not text.isdecimal() else int(text)
        return self.checked(word, value)


def _choice(name: str, *choices: str) -> Parameter:
    return Parameter(name, str, " or ".join(choices), lambda value: value in choices, choices[0])


def _residual(default: bool) -> Parameter:
    return Parameter("residual", bool, "true or false", lambda value: True, default)


_DENSITY = Parameter("density", float, "a number in (0, 1]", lambda value: 0 < value <= 1)
_CHUNK = Parameter("chunk", int, "a whole number from 1 to 65536", lambda value: 1 <= value <= 65536, 4096)
_BITS = Parameter("bits", int, "1, 2, 4 or 8", lambda value: value in (1, 2, 4, 8))
_BUCKET = Parameter(
    "bucket", int, "a power of two from 8 to 65536", lambda value: 8 <= value <= 65536 and value & (value - 1) == 0, 512
)

WORDS: dict[str, tuple[Parameter, ...]] = {
    "none": (),
    "topk": (_DENSITY, _residual(True)),
    "chunktopk": (_DENSITY, _CHUNK, _residual(True)),
    "quantize": (_BITS, _BUCKET, _choice("norm", "max", "l2"), _choice("rounding", "stochastic", "nearest"),
                 _residual(False)),
}  # fmt: skip
SPARSIFIERS = ("topk", "chunktopk")


class Stage(NamedTuple):
    """One word of a spec with the values of all its parameters, in the order of the table."""

    word: str
    values: dict[str, Any]

    def __str__(self) -> str:
        argument, options = "", []
        for parameter in WORDS[self.word]:
            text = _spelled(self.values[parameter.name])
            if parameter.default is None:
                argument = f":{text}"
            elif self.values[parameter.name] != parameter.default:
                options.append(f"{parameter.name}={text}")
        return self.word + argument + (f"[{','.join(options)}]" if options else "")


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def checked_stage(word: str, values: Mapping[str, Any]) -> Stage:
    """Return the stage of `word` with every value checked; SpecError names what is wrong."""
    return Stage(word, {p.name: p.checked(word, values.get(p.name, p.default)) for p in WORDS[word]})


def check_order(stages: Sequence[Stage]) -> None:
    """Raise SpecError unless the stages are a single one, or a sparsifier followed by a quantizer."""
    words = [stage.word for stage in stages]
    if len(words) == 1:
        return
    joined = "+".join(words)
    if len(words) != 2 or words[0] not in SPARSIFIERS or words[1] != "quantize":
        raise SpecError(
            f"{joined}: stages must be one sparsifier ({' or '.join(SPARSIFIERS)}) followed by one quantizer "
            "(quantize), as in topk:0.01+quantize:4"
        )
    if stages[1].values["residual"]:
        raise SpecError(
            f"{joined}: residual=true on quantize is wrong in a chain; the residual belongs to {words[0]}, "
            "and takes in the quantization error"
        )


def parse(text: str) -> tuple[Stage, ...]:
    """Return the stages that a spec string names.

    Spaces around `+` do not matter. Raises SpecError for an unknown word (listing the known ones), a missing or
    illegal argument, an unknown or repeated option, or an order of stages that makes no sense.
    """
    if not isinstance(text, str):
        raise SpecError(f"a spec must be a string such as 'topk:0.01', not {type(text).__name__}")
    if len(text) > MAX_SPEC_LENGTH:
        raise SpecError(f"a spec has at most {MAX_SPEC_LENGTH} characters, not {len(text)}")
    stages = tuple(_parse_stage(part.strip()) for part in text.split("+"))
    check_order(stages)
    return stages


def _parse_stage(text: str) -> Stage:
    match = _STAGE.fullmatch(text)
    if match is None:
        raise SpecError(f"{text!r} is no stage of a spec; write word:argument[option=value], as in quantize:4[norm=l2]")
    word, argument, options = match["word"], match["argument"], match["options"]
    if word not in WORDS:
        raise SpecError(f"unknown compressor {word!r}; known ones: {', '.join(WORDS)}")
    required = [parameter for parameter in WORDS[word] if parameter.default is None]
    if required and argument is None:
        raise SpecError(f"{word} needs its {required[0].name} after a colon: {required[0].right}")
    if not required and argument is not None:
        raise SpecError(f"{word} takes no argument, but {argument!r} follows the colon")
    values = {required[0].name: required[0].read(word, argument)} if required else {}
    if options is not None:
        values |= _parse_options(word, options)
    return checked_stage(word, values)


def _parse_options(word: str, text: str) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in WORDS[word] if parameter.default is not None}
    values: dict[str, Any] = {}
    for option in text.split(","):
        name, equals, value = option.strip().partition("=")
        if name not in known:
            raise SpecError(f"{word} has no option {name!r}; it knows: {', '.join(known) or 'none'}")
        if not equals or name in values:
            raise SpecError(f"{word}: option {name!r} must be given once, as {name}=value")
        values[name] = known[name].read(word, value)
    return values


def spell(stages: Sequence[Stage]) -> str:
    """Return the canonical spec string of `stages`."""
    return "+".join(str(stage) for stage in stages)
