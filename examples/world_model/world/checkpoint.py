"""A checkpoint: the model's weights in BF16, with its sizes as metadata."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from world.config import Config
from world.files import replacing
from world.model import WorldModel

DEFAULT = Path(__file__).resolve().parents[1] / "checkpoint.safetensors"
LARGEST_BYTES = 3_500_000


def save_checkpoint(model: WorldModel, path: Path) -> None:
    """Write the weights in BF16. Raises ValueError where they exceed the size that a checkpoint may have."""
    tensors = {name: x.detach().to("cpu", torch.bfloat16).contiguous() for name, x in model.state_dict().items()}
    size = sum(x.nbytes for x in tensors.values())
    if size > LARGEST_BYTES:
        raise ValueError(f"the weights have {size} bytes; expected at most {LARGEST_BYTES}")
    with replacing(path) as part:
        save_file(tensors, part, {"config": json.dumps(asdict(model.config))})


def load_checkpoint(path: Path, device: str = "cpu") -> WorldModel:
    """Return the model of a checkpoint, in BF16. Raises ValueError for tensors of another shape or dtype."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {path} is missing or not a safetensors file: {error}") from error
    try:
        config = Config(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} has no metadata `config` of a world model: {error!r}") from error
    model = WorldModel(config).to(torch.bfloat16)
    expected = {name: (x.dtype, tuple(x.shape)) for name, x in model.state_dict().items()}
    actual = {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()}
    if differing := [name for name in sorted({*expected, *actual}) if expected.get(name) != actual.get(name)]:
        name = differing[0]
        raise ValueError(
            f"checkpoint {path}: {len(differing)} tensors differ from the model; {name} is "
            f"{describe(actual.get(name))}; expected {describe(expected.get(name))}"
        )
    model.load_state_dict(tensors)
    return model.eval().to(device)


def describe(kind: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if kind is None else f"{kind[0]} {kind[1]}"
