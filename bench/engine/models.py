"""The models that are run: a config.json alone, weights are dummies."""

import json
from pathlib import Path
from typing import NamedTuple

from bench.record.files import write_text
from bench.roofline.shape import SHIPPED
from flashinfer_patches.files import writing
from vllm_launch.model import EMBEDDED


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


def vocabulary(shape: str) -> int:
    return json.loads(SHAPES[shape].config.read_text(encoding="utf-8"))["vocab_size"]
