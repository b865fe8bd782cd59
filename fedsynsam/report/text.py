"""How figures are written for people."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """A number of bytes with a decimal unit: 1234567 is `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percent(mean: float, spread: float | None) -> str:
    """Accuracy as a percentage, with the standard deviation over seeds where there is one."""
    return f"{100 * mean:.2f}" if spread is None else f"{100 * mean:.2f} ± {100 * spread:.2f}"


def value_text(value: object) -> str:
    """The value of a setting: 0.1, 5, inf, none."""
    return "none" if value is None else str(value).removesuffix(".0")
