"""The settings that our plugin records once its attention backend is resolved: the JSON file of FP8_SINKS_RECORD."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError


class DecoderRecord(BaseModel):
    """The keys of a record that the launcher reads; later plugins may write more.

    decoder, prefill, cache_writer: who computes decode and prefill attention, and who writes the KV cache. kv_format:
    its storage format. kv_scales: the sha256 of the scale file, None without one.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    version: Literal[1]
    decoder: Literal["lowp", "flashinfer"]
    prefill: str
    cache_writer: str
    kv_format: str
    kv_scales: str | None


def read(path: Path) -> DecoderRecord:
    """Read a record; raises ValueError in one line if there is none, or if it is not valid."""
    try:
        return DecoderRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"no record of the decoder at {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"the record of the decoder at {path} is not valid: {key}: {first['msg']}") from error
