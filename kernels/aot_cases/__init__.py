"""The Triton kernels as `python -m fedsynsam.kernels.aot` compiles them: a module an operation. Needs Triton."""

from . import sam
from .case import Case

__all__ = ["Case", "all_cases"]


def all_cases() -> list[Case]:
    """Return the specializations of every kernel, operation by operation."""
    return [case for operation in (sam,) for case in operation.cases()]
