"""What the backend resolved to: one line of the log, and the JSON file that FP8_SINKS_RECORD names."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vllm.logger import init_logger

from flashinfer_patches import files
from vllm_launch.decoder.contract import RECORD

VERSION = 1

logger = init_logger("vllm.fp8_sinks")


class Record(NamedTuple):
    """The backend's choices. kv_format, window_kv_format: of full and of window layers. kv_scales: SHA-256 or None."""

    decoder: str
    prefill: str
    cache_writer: str
    kv_format: str
    window_kv_format: str
    kv_scales: str | None
    vllm: str
    layers: int
    window_layers: int
    capability: str


def line(record: Record) -> str:
    """Return the record as the log's line."""
    skips = record.window_kv_format != record.kv_format and record.window_layers
    window = f" (window layers {record.window_kv_format})" if skips else ""
    scales = record.kv_scales[:12] if record.kv_scales else "none"
    return (
        f"fp8-sinks: decoder {record.decoder}, prefill {record.prefill}, writer {record.cache_writer}, "
        f"KV {record.kv_format}{window}, scales {scales}"
    )


def write(record: Record, path: Path) -> None:
    """Write the record as JSON, whole or not at all."""
    content = json.dumps({"version": VERSION} | record._asdict(), indent=1) + "\n"
    files.replace(path, content.encode())


def publish(record: Record, environment: Mapping[str, str]) -> None:
    """Log the record, and write it to the file that RECORD names if there is one; once a process."""
    _publish(record, environment.get(RECORD))


@functools.cache
def _publish(record: Record, path: str | None) -> None:
    logger.info(line(record))
    if path:
        write(record, Path(path))
