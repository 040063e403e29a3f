#!/usr/bin/env bash
# Regenerates locks/*.txt from locks/*.in. Versions already locked are kept as long as the .in
# files allow them, so a second run changes nothing; `scripts/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/../locks"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q --disable-pip-version-check uv==0.13.9 packaging==26.3

# lock NAME PLATFORMS [uv option...]: NAME.in -> NAME.txt, without a host or a path in it.
lock() {
    local name=$1 platforms=$2; shift 2
    "$scratch/venv/bin/uv" --no-config pip compile --quiet --universal --python-version 3.11 \
        --no-header --no-annotate "$name.in" --output-file "$name.txt" "$@" >/dev/null
    "$scratch/venv/bin/python" - "$name.txt" "$platforms" <<'PY'
"""Keep the lines that some supported platform installs; drop a marker that holds on all of them."""
import sys
from packaging.requirements import Requirement

path, platforms = sys.argv[1:]
targets = [
    {"python_version": v, "python_full_version": v + ".0", "platform_machine": machine, "extra": "",
     "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
     "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    for v in ("3.11", "3.12", "3.13") for machine in platforms.split()
]
lines = [f"# Made by scripts/lock.sh. Linux {platforms.replace(' ', ' and ')}, Python 3.11 to 3.13.\n",
         "# Install with: pip install --no-deps -r FILE\n"]
for line in map(str.strip, open(path)):
    if line.startswith("#"):
        continue
    req = Requirement(line)
    holds = [req.marker is None or req.marker.evaluate(t) for t in targets]
    if any(holds):
        lines.append((line.split(" ;")[0] if all(holds) else line) + "\n")
open(path, "w").writelines(lines)
PY
}

lock cpu "x86_64" --excludes cpu.exclude "$@"
lock gpu-vllm-0.26 "x86_64 aarch64" --excludes gpu.exclude "$@"
lock gpu-vllm-0.33 "x86_64 aarch64" --excludes gpu.exclude --overrides gpu-vllm-0.33.override "$@"
lock dev "x86_64 aarch64" "$@"
