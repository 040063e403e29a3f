"""Files that are written whole or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; after the block it replaces `path`."""
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)


def write_json(record: dict, path: Path) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
