from .aggregate import aggregate_codes, aggregate_sparse
from .quantize import Quantized, dequantize, quantize
from .seeds import row_seed, splitmix64

__all__ = ["Quantized", "aggregate_codes", "aggregate_sparse", "dequantize", "quantize", "row_seed", "splitmix64"]
