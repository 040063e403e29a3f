"""Scale files for tests, as `scales calibrate` writes them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from vllm_launch.scales import file
from vllm_launch.scales.file import Scales


def origin(config: bytes, kv_format: str = "e4m3") -> file.Origin:
    """The origin of a file for a model with this config.json."""
    return file.Origin(
        kv_format=kv_format,
        granularity=file.GRANULARITIES[kv_format][0],
        model="some-model",
        config_sha256=hashlib.sha256(config).hexdigest(),
        text_sha256="a" * 64,
        tokens=4096,
        percentile=99.9,
        headroom=2.0,
        values=1000,
        saturated_unscaled=7,
        saturated_scaled=0,
        commit="unknown",
    )


def write(path: Path, config: bytes, k: Sequence[torch.Tensor], v: Sequence[torch.Tensor]) -> Scales:
    """Write scales of each layer for a model with this config.json: [kv_heads], or k of int8 [kv_heads, head_dim]."""
    return file.write(path, k, v, origin(config, "int8" if k[0].dim() == 2 else "e4m3"), len(k[0]))
