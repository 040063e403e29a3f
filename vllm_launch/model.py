"""The model to serve: find it on this machine, and read what its files say. Loads no weights."""

import json
import struct
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from pydantic import BaseModel, ConfigDict

from vllm_launch.errors import Problem

EMBEDDED = Path(__file__).resolve().parent.parent / "models" / "tiny_gpt_oss"


class Model(BaseModel):
    """A model folder, described by its config.json and the headers of its safetensors files.

    name: what clients call it, and the key of its settings in a profile. weight_bytes: size on disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    path: str
    architecture: str
    model_type: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    sliding_window: int | None
    max_positions: int
    weight_bytes: int
    has_sinks: bool


def of_default(name: str) -> str:
    """What `find` takes for a profile's default_model: the embedded model's name stands for its folder."""
    return str(EMBEDDED) if name == EMBEDDED.name else name


def find(model: str) -> Model:
    """Describe `model`: a folder, or the name of a repository in the local Hugging Face cache.

    Nothing is downloaded. Raises Problem("model") if it is not there, not readable, or has no weights.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _cached(model)
    config = _read_json(folder / "config.json")
    names, size = _weights(folder)
    try:
        return Model(
            name=Path(model).expanduser().resolve().name if Path(model).exists() else model.split("/")[-1],
            path=str(folder.resolve()),
            architecture=config["architectures"][0],
            model_type=config["model_type"],
            layers=config["num_hidden_layers"],
            query_heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            sliding_window=config.get("sliding_window"),
            max_positions=config["max_position_embeddings"],
            weight_bytes=size,
            has_sinks=any(name.endswith(".sinks") for name in names),
        )
    except (KeyError, IndexError) as error:
        raise Problem(
            "model",
            f"{folder / 'config.json'} has no {error}: not the config of a decoder model",
            "give --model a folder as Hugging Face transformers writes it",
        ) from error


def _cached(name: str) -> Path:
    remedy = f"give --model a folder, or download it first: hf download {name}"
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise Problem("model", f"no such model folder: {name}", "give --model an existing folder or owner/name")
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        raise Problem("model", f"{name} is not in the local Hugging Face cache", remedy)
    return Path(config).parent


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(
            "model", f"cannot read {path}: {error}", "give --model a complete model folder (config.json)"
        ) from error


def _weights(folder: Path) -> tuple[list[str], int]:
    """Tensor names and total bytes of a folder's safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index)["weight_map"]
        names, files = list(weight_map), {folder / f for f in weight_map.values()}
    else:
        files = {folder / "model.safetensors"}
        names = _header_names(folder / "model.safetensors")
    missing = sorted(f.name for f in files if not f.exists())
    if missing:
        raise Problem(
            "model",
            f"{folder} lacks {len(missing)} weight file(s), first {missing[0]}",
            "download the model again; it is incomplete",
        )
    return names, sum(f.stat().st_size for f in files)


def _header_names(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise Problem(
            "model", f"cannot read {path}: {error}", "give --model a folder with safetensors weights"
        ) from error
    return [name for name in header if name != "__metadata__"]
