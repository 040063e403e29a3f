"""Write records and text, whole or not at all."""

from pathlib import Path

from pydantic import BaseModel

from flashinfer_patches import files


def write(model: BaseModel, path: Path) -> None:
    """Write a record as JSON."""
    write_text(model.model_dump_json(indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    files.replace(path, text.encode())
