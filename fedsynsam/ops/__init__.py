from .index_coding import DecodedIndices, decode_indices, encode_indices, index_words
from .topk import TopK, chunk_count_kept, chunk_topk, count_kept, topk

__all__ = [
    "DecodedIndices",
    "TopK",
    "chunk_count_kept",
    "chunk_topk",
    "count_kept",
    "decode_indices",
    "encode_indices",
    "index_words",
    "topk",
]
