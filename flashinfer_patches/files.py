"""Write files."""

import os
from pathlib import Path


def write_new(path: Path, data: bytes) -> None:
    """Write and sync a new file in place of an existing one; the target of a link is unchanged."""
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:  # fails on a link created since then
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
