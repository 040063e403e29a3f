"""The example is no package of the wheel: its folder goes on the path, as when its scripts run."""

import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "world_model"
sys.path.insert(0, str(EXAMPLE))

from world.config import Config  # noqa: E402
from world.model import WorldModel  # noqa: E402

SMALL = {"layers": 2, "dim": 64, "heads": 2, "mlp": 64, "global_frames": 3, "local_frames": 2, "global_every": 2}


@pytest.fixture(scope="session")
def model() -> WorldModel:
    """Two layers of random weights in BF16; every frame depends on its history and its controls."""
    torch.manual_seed(0)
    small = WorldModel(Config(**SMALL))
    with torch.no_grad():
        for block in small.blocks:
            block.modulation.normal_(std=0.5)
        small.modulation.weight.normal_(std=0.2)
    return small.bfloat16().eval()
