"""How this room writes files."""

import os
from pathlib import Path


def write_new(path: Path, data: bytes) -> None:
    """Write a new file to the disk in place of what has that name; of a link the target stays as it is."""
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:  # follows no link that came in between
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
