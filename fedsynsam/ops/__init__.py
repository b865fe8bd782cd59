"""The operations: validated, row-batched, registered with `torch.library`, and served by the best backend."""

from .aggregate import aggregate_codes, aggregate_sparse
from .index_coding import DecodedIndices, decode_indices, encode_indices, index_words
from .quantize import Quantized, dequantize, quantize
from .sam import sam_norm, sam_perturb, sam_step
from .seeds import row_seed, splitmix64
from .topk import TopK, chunk_count_kept, chunk_topk, count_kept, topk

__all__ = [
    "DecodedIndices",
    "Quantized",
    "TopK",
    "aggregate_codes",
    "aggregate_sparse",
    "chunk_count_kept",
    "chunk_topk",
    "count_kept",
    "decode_indices",
    "dequantize",
    "encode_indices",
    "index_words",
    "quantize",
    "row_seed",
    "sam_norm",
    "sam_perturb",
    "sam_step",
    "splitmix64",
    "topk",
]
