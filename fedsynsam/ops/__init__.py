from .aggregate import aggregate_codes, aggregate_sparse
from .quantize import Quantized, dequantize, quantize
from .sam import sam_norm, sam_perturb, sam_step
from .seeds import row_seed, splitmix64

__all__ = [
    "Quantized",
    "aggregate_codes",
    "aggregate_sparse",
    "dequantize",
    "quantize",
    "row_seed",
    "sam_norm",
    "sam_perturb",
    "sam_step",
    "splitmix64",
]
