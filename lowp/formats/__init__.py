"""Storage formats and their scales."""

from lowp.formats.convert import Quantized, amax_scale, dequantize, quantize
from lowp.formats.table import FORMATS, GRANULARITIES, Format, find, scale_axes

__all__ = [
    "FORMATS",
    "GRANULARITIES",
    "Format",
    "Quantized",
    "amax_scale",
    "dequantize",
    "find",
    "quantize",
    "scale_axes",
]
