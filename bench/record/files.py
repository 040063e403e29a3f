"""Write records and text, whole or not at all."""

import re
from pathlib import Path

from pydantic import BaseModel

from flashinfer_patches import files

NUMBERS = re.compile(r"\[\n\s*([-+.\deE,\s]+?)\n\s*\]")  # never inside a string: JSON escapes its newlines


def write(model: BaseModel, path: Path) -> None:
    """Write a record as JSON."""
    write_json(model.model_dump_json(indent=1), path)


def write_json(text: str, path: Path) -> None:
    """Write indented JSON, each list of numbers on one line: half the bytes of one number a line."""
    write_text(NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n", path)


def write_text(text: str, path: Path) -> None:
    files.replace(path, text.encode())
