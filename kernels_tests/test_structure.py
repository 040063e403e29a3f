"""docs/structure.md names every module, under its room."""

import re
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "examples", "flashinfer_patches", "fp8_sinks", "lowp", "vllm_launch")


def test_every_module_is_described():
    tracked = subprocess.run(
        ["git", "ls-files", *(f"{package}/**.py" for package in PACKAGES)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    modules = {path for path in tracked if not path.endswith(("__init__.py", "__main__.py"))}
    described, room = set(), ""
    for line in (REPO / "docs" / "structure.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## (\S+)", line):
            room = heading[1]
        elif entry := re.match(r"- `(\w+\.py)`: \S", line):
            described.add(f"{room}/{entry[1]}")
    assert described == modules and modules
