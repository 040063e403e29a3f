"""Storage formats and their scales."""

from lowp.formats.convert import Quantized, amax_scale, dequantize, quantize, scale_values
from lowp.formats.table import FORMATS, Format

__all__ = [
    "FORMATS",
    "Format",
    "Quantized",
    "amax_scale",
    "dequantize",
    "quantize",
    "scale_values",
]
