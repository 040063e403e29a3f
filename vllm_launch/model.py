"""Find the model to serve on this machine, and read its config and the names of its tensors. Loads no weights."""

import json
import re
from pathlib import Path
from typing import Annotated

from huggingface_hub import try_to_load_from_cache
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict

WEIGHT_FILE = re.compile(r"\w[\w.-]{0,200}\.safetensors")
COMPLETE = "give --model a complete model folder (config.json and safetensors files)"
EMBEDDED = (Path(__file__).parent / "tiny_gpt_oss").resolve()  # in a checkout a link to models/tiny_gpt_oss


class Model(Strict):
    """A model folder, described by its config.json and the headers of its safetensors files.

    name: what clients call it, and the key of its settings in a profile. weight_bytes: size on disk. weight_bytes and
    has_sinks are None where the weights are not on this machine.
    """

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
    weight_bytes: int | None
    has_sinks: bool | None


Count = Annotated[int, Field(ge=1, le=1 << 40)]


def _encodable(text: str) -> str:
    """Raise ValueError for an unpaired surrogate, which JSON can escape and UTF-8 cannot encode."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class ModelConfig(BaseModel):
    """The keys that are read of a config.json, in Hugging Face's names."""

    model_config = ConfigDict(strict=True, frozen=True)
    architectures: Annotated[list[Text], Field(min_length=1)]
    model_type: Text
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_size: Count
    sliding_window: Annotated[int, Field(ge=0, le=1 << 40)] | None = None
    max_position_embeddings: Count

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _heads_fit(self):
        if self.num_attention_heads % self.kv_heads or self.hidden_size < self.num_attention_heads:
            raise ValueError("query heads, KV heads and hidden_size do not fit together")
        return self


def of_default(name: str) -> str:
    """The argument of `find` for a profile's default_model: the embedded model's folder instead of its name."""
    return str(EMBEDDED) if name == EMBEDDED.name else name


def find(model: str, *, need_weights: bool = True) -> Model:
    """Describe `model`: a folder, or the name of a repository in the local Hugging Face cache.

    Downloads nothing. need_weights: not by the client of a server elsewhere. Raises Problem("model") if the model does
    not exist, cannot be read, or lacks weights that are needed.
    """
    folder = _folder(model)
    config = _config(folder / "config.json")
    has_weights = need_weights or any(folder.glob("*.safetensors"))
    names, size = _weights(folder) if has_weights else (None, None)
    return Model(
        name=_name(model, folder),
        path=str(folder.resolve()),
        architecture=config.architectures[0],
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        query_heads=config.num_attention_heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_size,
        sliding_window=config.sliding_window,
        max_positions=config.max_position_embeddings,
        weight_bytes=size,
        has_sinks=any(name.endswith(".sinks") for name in names) if has_weights else None,
    )


def _folder(model: str) -> Path:
    try:
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else _cached(model)
    except (OSError, ValueError, RuntimeError) as error:  # neither a valid path nor a repository's name
        raise Problem(
            "model", f"no such model: {model[:200]!r}", "give --model an existing folder or owner/name"
        ) from error


def _name(model: str, folder: Path) -> str:
    """What clients call the model: the folder's name, or the repository's without its owner."""
    name = folder.resolve().name if Path(model).expanduser().is_dir() else model.split("/")[-1]
    if not name or name.startswith("-") or not name.isprintable():
        # It becomes a word of vLLM's command line.
        raise Problem("model", f"{name!r} cannot be the name of a served model", "rename the folder")
    return name


def _cached(name: str) -> Path:
    remedy = f"give --model a folder, or download it first: hf download {name}"
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise Problem("model", f"no such model folder: {name}", "give --model an existing folder or owner/name")
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        raise Problem("model", f"{name} is not in the local Hugging Face cache", remedy)
    return Path(config).parent


def _config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(_read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2]) or "heads"
        message = f"{path}: {where}: {first['msg']} (got {str(first['input'])[:60]!r})"
        raise Problem("model", message, "give --model a folder as Hugging Face transformers writes it") from error


def _weights(folder: Path) -> tuple[list[str], int]:
    """Tensor names and total bytes of a folder's safetensors files, which must be complete."""
    index = folder / "model.safetensors.index.json"
    files = _files(index) if index.exists() else [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        message = f"{folder} lacks {len(missing)} weight file(s), first {missing[0]}"
        raise Problem("model", message, "download the model again; it is incomplete")
    names = [name for file in files for name in _tensor_names(file)]
    return names, sum(file.stat().st_size for file in files)


def _files(index: Path) -> list[Path]:
    """The weight files that an index lists, all in its folder."""
    weight_map = _read_object(index).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not files or not all(isinstance(file, str) and WEIGHT_FILE.fullmatch(file) for file in files):
        message = f"{index}: weight_map is no map from tensors to *.safetensors files of that folder"
        raise Problem("model", message, "download the model again")
    return [index.parent / file for file in sorted(set(files))]


def _tensor_names(path: Path) -> list[str]:
    """The tensors of a safetensors file; raises Problem("model") unless every byte of them is there."""
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        remedy = (
            "download the model again: that file is broken or not downloaded yet (git lfs pull); if it has a new dtype,"
            " upgrade safetensors"
        )
        raise Problem("model", f"cannot read {path}: {str(error)[:200]}", remedy) from error


def _read_object(path: Path) -> dict:
    """Read a JSON file that holds a map."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise Problem("model", f"cannot read {path}: {error.strerror}", COMPLETE) from error
    except (ValueError, RecursionError) as error:
        raise Problem("model", f"cannot read {path}: no JSON ({error})", COMPLETE) from error
    if not isinstance(content, dict):
        raise Problem("model", f"cannot read {path}: JSON, but no map of keys", COMPLETE)
    return content
