"""The Triton kernels as `python -m fedsynsam.kernels.aot` compiles them: a module an operation. Needs Triton."""

from . import aggregate, index_coding, quantize, sam, topk
from .case import Case

__all__ = ["Case", "all_cases"]


def all_cases() -> list[Case]:
    """Return the specializations of every kernel, operation by operation."""
    return [case for operation in (aggregate, index_coding, quantize, sam, topk) for case in operation.cases()]
