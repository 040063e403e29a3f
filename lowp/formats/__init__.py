"""Storage formats and their scales."""

from lowp.formats.convert import Quantized, amax_scale, dequantize, quantize
from lowp.formats.table import FORMATS, Format

__all__ = [
    "FORMATS",
    "Format",
    "Quantized",
    "amax_scale",
    "dequantize",
    "quantize",
]
