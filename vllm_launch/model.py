"""The model to serve: find it on this machine, and read what its files say. Loads no weights."""

import json
import re
import struct
from pathlib import Path
from typing import Annotated

from huggingface_hub import try_to_load_from_cache
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from flashinfer_patches.errors import Problem

MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
WEIGHT_FILE = re.compile(r"\w[\w.-]{0,200}\.safetensors")
COMPLETE = "give --model a complete model folder (config.json and safetensors files)"
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


Count = Annotated[int, Field(ge=1, le=1 << 40)]


def _encodable(text: str) -> str:
    """`text`; ValueError for half of a surrogate pair, which JSON can escape and UTF-8 cannot hold."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Config(BaseModel):
    """What is read of a config.json, in Hugging Face's names; numbers are numbers there, not text."""

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

    @model_validator(mode="after")
    def _heads_fit(self):
        if self.num_attention_heads % self.kv_heads or self.hidden_size < self.num_attention_heads:
            raise ValueError("query heads, KV heads and hidden_size do not go together")
        return self


def of_default(name: str) -> str:
    """What `find` takes for a profile's default_model: the embedded model's name stands for its folder."""
    return str(EMBEDDED) if name == EMBEDDED.name else name


def find(model: str) -> Model:
    """Describe `model`: a folder, or the name of a repository in the local Hugging Face cache.

    Nothing is downloaded. Raises Problem("model") if it is not there, not readable, or has no weights.
    """
    folder = _folder(model)
    config = _config(folder / "config.json")
    names, size = _weights(folder)
    return Model(
        name=_name(model, folder),
        path=str(folder.resolve()),
        architecture=config.architectures[0],
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        query_heads=config.num_attention_heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        sliding_window=config.sliding_window,
        max_positions=config.max_position_embeddings,
        weight_bytes=size,
        has_sinks=any(name.endswith(".sinks") for name in names),
    )


def _folder(model: str) -> Path:
    try:
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else _cached(model)
    except (OSError, ValueError, RuntimeError) as error:  # a path that cannot be, or no name of a repository
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


def _config(path: Path) -> Config:
    try:
        return Config.model_validate(_read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2]) or "heads"
        what = f"{path}: {where}: {first['msg']} (got {str(first['input'])[:60]!r})"
        raise Problem("model", what, "give --model a folder as Hugging Face transformers writes it") from error


def _weights(folder: Path) -> tuple[list[str], int]:
    """Tensor names and total bytes of a folder's safetensors files, by their headers; every byte must be there."""
    index = folder / "model.safetensors.index.json"
    files = _files(index) if index.exists() else [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        what = f"{folder} lacks {len(missing)} weight file(s), first {missing[0]}"
        raise Problem("model", what, "download the model again; it is incomplete")
    names = [name for file in files for name in _tensor_names(file)]
    return names, sum(file.stat().st_size for file in files)


def _files(index: Path) -> list[Path]:
    """The weight files that an index names, all beside it."""
    weight_map = _read_object(index).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not files or not all(isinstance(file, str) and WEIGHT_FILE.fullmatch(file) for file in files):
        what = f"{index}: weight_map is no map from tensors to *.safetensors files of that folder"
        raise Problem("model", what, "download the model again")
    return [index.parent / file for file in sorted(set(files))]


def _tensor_names(path: Path) -> list[str]:
    """The tensors of a safetensors file: 8 bytes of header length, the header in JSON, then the tensors' bytes."""
    remedy = "download the model again: that file is broken, or not downloaded yet (git lfs pull)"
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise Problem(
                    "model", f"cannot read {path}: a header of {length:,} bytes in a file of {size:,}", remedy
                )
            header = _object(path, file.read(length))
    except (OSError, struct.error) as error:
        raise Problem("model", f"cannot read {path}: {error}", remedy) from error
    header.pop("__metadata__", None)
    try:
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        complete = 8 + length + end <= size
    except (TypeError, KeyError, IndexError) as error:
        raise Problem("model", f"cannot read {path}: its header does not say where its tensors are", remedy) from error
    if not complete:
        raise Problem("model", f"{path} has {size:,} bytes of {8 + length + end:,}", remedy)
    return list(header)


def _read_object(path: Path) -> dict:
    """A JSON file that holds a map."""
    try:
        return _object(path, path.read_bytes())
    except OSError as error:
        raise Problem("model", f"cannot read {path}: {error.strerror}", COMPLETE) from error


def _object(path: Path, text: bytes) -> dict:
    """JSON text, of the file `path`, that is a map."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem("model", f"cannot read {path}: no JSON ({error})", COMPLETE) from error
    if not isinstance(content, dict):
        raise Problem("model", f"cannot read {path}: JSON, but no map of keys", COMPLETE)
    return content
