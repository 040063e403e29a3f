"""What a ring counts of its frames, on its device: nothing here waits for a GPU."""

from dataclasses import dataclass

import torch

from lowp.formats import FORMATS, Quantized, dequantize, scale_values
from lowp.static_cache.store import Store, is_quantized

COUNTS = ("at_limit", "clamped", "nan", "inf")


@dataclass(frozen=True)
class Counters:
    """Counts of a ring, on its device. values: int64 [2 (K, V), COUNTS]; frames, gets: int64 without axes.

    scale_range: fp32 [2, 3]: least and largest scale, and the sum of the frames' mean scales.
    """

    values: torch.Tensor
    frames: torch.Tensor
    gets: torch.Tensor
    scale_range: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.values, self.frames, self.gets, self.scale_range]


def make_counters(device) -> Counters:
    integers = {"dtype": torch.int64, "device": device}
    counters = Counters(
        torch.zeros(2, len(COUNTS), **integers),
        torch.zeros((), **integers),
        torch.zeros((), **integers),
        torch.zeros(2, 3, device=device),
    )
    clear_counters(counters)
    return counters


def clear_counters(counters: Counters) -> None:
    for tensor in counters.tensors:
        tensor.zero_()
    counters.scale_range[:, 0].fill_(torch.inf)


def count_frame(
    counters: Counters,
    row: int,
    store: Store,
    frame: torch.Tensor,
    quantized: Quantized,
    scale: torch.Tensor | None,
) -> None:
    """Add a committed frame of K (row 0) or V (row 1), which counts the frame as well."""
    if is_quantized(store.kv_format):
        magnitudes = dequantize(quantized.values, None, store.kv_format).abs()
        at_limit = (magnitudes == FORMATS[store.kv_format].largest).sum()
    else:
        at_limit = torch.zeros_like(quantized.saturated)
    counts = (at_limit, quantized.saturated, frame.isnan().sum(), frame.isinf().sum())
    counters.values[row].add_(torch.stack(counts))
    if scale is not None:
        scale, (least, largest, total) = scale_values(scale), counters.scale_range[row].unbind()
        least.copy_(torch.minimum(least, scale.min()))
        largest.copy_(torch.maximum(largest, scale.max()))
        total.add_(scale.mean())
    if row == 1:
        counters.frames.add_(1)
