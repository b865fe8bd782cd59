"""Seeds of the stochastic operations: one 64-bit number a row, mixed from what identifies the row.

Nothing here reads a clock or a global random state: equal numbers give equal seeds, on every machine.
"""

from __future__ import annotations

from ..errors import ArgumentError

_MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """Return the SplitMix64 output for the 64-bit state `value` (any int, taken modulo 2^64), in [0, 2^64).

    z = value + 0x9E3779B97F4A7C15; z = (z ^ z>>30)·0xBF58476D1CE4E5B9; z = (z ^ z>>27)·0x94D049BB133111EB; z ^ z>>31,
    a bijection of the 64-bit integers (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    """
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def row_seed(seed: int, round: int, client: int) -> int:
    """Return the seed of one row, splitmix64(splitmix64(splitmix64(seed) ^ round) ^ client), as a signed int64.

    The three numbers are ints of the signed or unsigned 64-bit range (negative ones count modulo 2^64); the result
    lies in [-2^63, 2^63), so that it fits the int64 `seeds` tensor of `quantize`. For two fixed arguments the map of
    the third is a bijection, so different clients of a round never share a seed.

    Raises ArgumentError for a number that is no int or lies outside the 64-bit range.
    """
    mixed = 0
    for name, value in (("seed", seed), ("round", round), ("client", client)):
        if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value <= _MASK:
            raise ArgumentError(f"{name} must be an int of at most 64 bits, but it is {value!r}")
        mixed = splitmix64(mixed ^ (value & _MASK))
    return mixed - (1 << 64) if mixed >> 63 else mixed
