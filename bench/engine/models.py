"""The models that are run: a config.json alone, weights are dummies."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from bench.record.files import write_text
from bench.roofline.shape import SHIPPED
from flashinfer_patches.files import writing
from vllm_launch.model import EMBEDDED

SCALES = "scales.safetensors"  # in a run's folder
SCALE = 1 / 32  # of int8 codes: normal values are within 4


class ModelShape(NamedTuple):
    """A model without weights. config: its config.json. most_sequences: that an engine takes at once."""

    config: Path
    most_sequences: int


SHAPES = {
    "gpt-oss-120b": ModelShape(SHIPPED / "gpt-oss-120b.json", 128),
    "gpt-oss-20b": ModelShape(SHIPPED / "gpt-oss-20b.json", 512),
    "tiny": ModelShape(EMBEDDED / "config.json", 16),
}


def write_folder(shape: str, folder: Path) -> Path:
    """Write a model folder that holds the config alone, and return it; raises Problem("disk")."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
        write_text(SHAPES[shape].config.read_text(encoding="utf-8"), folder / "config.json")
    return folder


def write_scales(shape: str, path: Path) -> None:
    """Write a scale file of int8-static, all of SCALE, for the model of `write_folder`; raises Problem("disk").

    Dummy weights make no keys and values to measure: the cache is filled with values of that scale (inside/weights.py).
    """
    import torch  # slow to load

    from vllm_launch.scales import file

    content = SHAPES[shape].config.read_text(encoding="utf-8").encode()
    config = json.loads(content)
    layers, kv_heads = config["num_hidden_layers"], config["num_key_value_heads"]
    origin = file.Origin(
        kv_format="int8",
        granularity="channel",
        model=f"{shape} with dummy weights",
        config_sha256=hashlib.sha256(content).hexdigest(),
        text_sha256=hashlib.sha256(b"").hexdigest(),
        tokens=1,
        percentile=100,
        headroom=1,
        values=1,
        saturated_unscaled=0,
        saturated_scaled=0,
        commit="unknown",
    )
    k = [torch.full((kv_heads, config["head_dim"]), SCALE) for _ in range(layers)]
    v = [torch.full((kv_heads,), SCALE) for _ in range(layers)]
    file.write(path, k, v, origin, kv_heads)


def vocabulary(shape: str) -> int:
    return json.loads(SHAPES[shape].config.read_text(encoding="utf-8"))["vocab_size"]
