"""All cases, in the order of the report. A top-k comes before the coding of its indices, whose goal depends on it."""

from ..case import Case
from . import aggregate, end_to_end, index_coding, quantize, sam, topk

CASES: tuple[Case, ...] = (
    *topk.CASES,
    *index_coding.CASES,
    *quantize.CASES,
    *aggregate.CASES,
    *sam.CASES,
    *end_to_end.CASES,
)
