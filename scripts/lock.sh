#!/usr/bin/env bash
# Rewrite locks/*.txt from locks/*.in. Locked versions are kept where the .in files allow them, so that a second run
# changes nothing; `scripts/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/../locks"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q --disable-pip-version-check uv==0.13.9 packaging==26.3

# lock NAME MACHINES [uv option...]: NAME.in -> NAME.txt, without a host or a path in it. The second run of uv lists
# the files of these versions with their hashes.
lock() {
    local name=$1 machines=$2; shift 2
    local pylock=$scratch/pylock.${name//./-}.toml uv=("$scratch/venv/bin/uv" --no-config pip compile --quiet --universal
        --python-version 3.11 --no-header --no-annotate)
    "${uv[@]}" "$name.in" --output-file "$name.txt" "$@" >/dev/null
    "${uv[@]}" --no-deps --format pylock.toml "$name.txt" --output-file "$pylock" >/dev/null
    "$scratch/venv/bin/python" ../scripts/lock.py "$name.txt" "$pylock" "$machines"
}

lock cpu "x86_64" --excludes cpu.exclude "$@"
lock gpu-vllm-0.26 "x86_64 aarch64" --excludes gpu.exclude "$@"
lock gpu-vllm-0.33 "x86_64 aarch64" --excludes gpu.exclude --overrides gpu-vllm-0.33.override "$@"
lock dev "x86_64 aarch64" "$@"
lock world-model "x86_64 aarch64" --excludes world-model.exclude "$@"
