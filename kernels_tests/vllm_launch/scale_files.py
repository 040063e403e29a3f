"""Scale files for tests, as `scales calibrate` writes them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from vllm_launch.scales import file
from vllm_launch.scales.file import Scales


def origin(config: bytes) -> file.Origin:
    """The origin of a file for a model with this config.json."""
    return file.Origin(
        granularity="head",
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
    """Write scales of each layer, [kv_heads], for a model with this config.json."""
    return file.write(path, k, v, origin(config), len(k[0]))
