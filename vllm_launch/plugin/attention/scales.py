"""KV scales inside vLLM: from the file that FP8_SINKS_KV_SCALES names to the layers, and a count of saturated values.

vLLM sets its own scales to 1.0 after it has loaded the weights. These tensors belong to our layers instead, and are the
same ones for cache writer, decode kernel and gather. A scale s stores x as x / s.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from vllm.logger import init_logger

from flashinfer_patches.errors import Problem
from vllm_launch.decoder.contract import KV_FORMAT, KV_SCALES
from vllm_launch.plugin.attention.formats import STATIC

POLL_PERIOD = 64  # engine steps between two readings of the saturation counts

logger = init_logger("vllm.fp8_sinks")


class HeadScales(NamedTuple):
    """Scales of a layer's K and V on this rank: fp32 [kv_heads] or [1], K of int8 [kv_heads, head_dim]; None is 1.0."""

    k: torch.Tensor | None = None
    v: torch.Tensor | None = None


class FileScales(NamedTuple):
    """The scales of a file: its SHA-256, None without one, and each layer's."""

    sha256: str | None
    layers: tuple[HeadScales, ...]


class Heads(NamedTuple):
    """The model's layers and KV heads, and which of the tensor-parallel ranks this is."""

    layers: int
    kv_heads: int
    rank: int
    ranks: int


def rank_heads(heads: Heads) -> slice:
    """Return the KV heads of this rank: an equal share, or one that several ranks have if there are more ranks."""
    if heads.ranks > heads.kv_heads:
        first = heads.rank * heads.kv_heads // heads.ranks
        return slice(first, first + 1)
    share = heads.kv_heads // heads.ranks
    return slice(heads.rank * share, (heads.rank + 1) * share)


def layer_number(layer_name: str) -> int:
    """Return N of a layer's name, "model.layers.N.self_attn.attn"."""
    number = re.search(r"\blayers\.(\d+)\.", layer_name)
    if number is None:
        raise ValueError(f"layer name is {layer_name!r}; expected one with layers.N.")
    return int(number[1])


def load_scales(environment: Mapping[str, str], heads: Heads, config: Path | None, device: torch.device) -> FileScales:
    """Load each layer's scales for this rank from the file that KV_SCALES names; no scales if it is unset.

    config: the served model's config.json. Raises Problem for a file that is not the model's, or for another format
    than KV_FORMAT.
    """
    path = environment.get(KV_SCALES)
    if not path:
        return FileScales(None, (HeadScales(),) * heads.layers)
    from vllm_launch.scales import file

    scales, part = file.load(path, heads.layers, heads.kv_heads), rank_heads(heads)
    file.check_format(scales, path, environment.get(KV_FORMAT) or "e4m3")
    file.check_model(scales, path, config)
    layers = (
        HeadScales(*(scale[part].to(device).contiguous() for scale in pair))
        for pair in zip(scales.k, scales.v, strict=True)
    )
    return FileScales(scales.sha256, tuple(layers))


def checkpoint_scales(layer) -> HeadScales:
    """Return the scales that vLLM has loaded from the checkpoint; None each if they are 1.0."""
    pairs = ((layer._k_scale_float, layer._k_scale), (layer._v_scale_float, layer._v_scale))
    return HeadScales(*(None if number == 1.0 else tensor.reshape(1) for number, tensor in pairs))


def require_static(environment: Mapping[str, str], kv_formats: set[str]) -> None:
    """Raise Problem if a scale file is given and no layer has a format with static scales."""
    if environment.get(KV_SCALES) and kv_formats.isdisjoint(STATIC):
        message = f"{KV_SCALES} is set, but the layers' KV caches are {', '.join(sorted(kv_formats))}; expected FP8"
        raise Problem("scales", message, "serve with --kv-cache-dtype fp8 and skip fewer layers, or unset it")


class Saturation:
    """Values of K and V that were over the format's largest and were clamped, counted by the cache writer.

    counts: [2] int64 on the device, for `cache_write`. `poll` reads it without synchronising, and warns once.
    """

    def __init__(self, device: torch.device):
        pinned = device.type == "cuda"
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        self.read = torch.zeros(2, dtype=torch.int64, pin_memory=pinned)
        self.copied = torch.cuda.Event() if pinned else None
        self.steps = 0
        self.has_warned = False

    def poll(self) -> None:
        """Start a copy of the counts every POLL_PERIOD calls; warn at the next call if the last copy has any."""
        if self.has_warned:
            return
        if self.steps and (self.copied is None or self.copied.query()) and self.read.any():
            k, v = self.read.tolist()
            logger.warning(
                "fp8-sinks: %d values of K and %d of V were over the largest value of the KV format and were clamped: "
                "calibrate scales with `fp8-sinks scales calibrate` and set %s",
                *(k, v, KV_SCALES),
            )
            self.has_warned = True
        if self.steps % POLL_PERIOD == 0:
            self.read.copy_(self.counts, non_blocking=True)
            if self.copied is not None:
                self.copied.record()
        self.steps += 1


@functools.cache
def saturation(device: torch.device) -> Saturation:
    """Return the process's count for a device."""
    return Saturation(device)
