#!/usr/bin/env bash
# Set up $VENV (default .venv) from the lock files, for the device that this machine has. Idempotent.
#   DEVICE=cpu|gpu  instead of looking    VLLM=0.26|0.33  the release on a GPU    PYTHON=python3.12  instead of looking
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$checkout"
device=${DEVICE:-} vllm=${VLLM:-0.26}
require_ours

if [ -n "$device" ]; then
    why="DEVICE=$device was given"
elif gpus=$(nvidia-smi -L 2>/dev/null) && [ -n "$gpus" ]; then
    device=gpu why="nvidia-smi shows ${gpus%% (*}"
else
    device=cpu why="no NVIDIA GPU answers nvidia-smi"
fi
case $device in
cpu) locks=(locks/cpu.txt locks/dev.txt) size="2 GB on disk, about 2 minutes (make bench then takes about 5)" ;;
gpu) locks=("locks/gpu-vllm-$vllm.txt" locks/dev.txt) size="12 GB on disk, 4 GB to download, 5 minutes or more" ;;
*) fail "DEVICE=$device is neither cpu nor gpu" "make setup DEVICE=cpu" ;;
esac
[ -f "${locks[0]}" ] || fail "no lock file ${locks[0]}" "VLLM=0.26 or VLLM=0.33"

# Two stamps: other locks mean a new environment, another pyproject.toml or checkout only our own package again.
locked="$device $(cat "${locks[@]}" locks/cpu-torch.txt | cksum)" ours="$(cksum <pyproject.toml) $checkout"
ours_stamp=$venv/.fp8-sinks-ours
stamped() { [ -x "$venv/bin/python" ] && [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
log=$venv/setup.log
install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps "$@" >>"$log" 2>&1; }
must_install() {
    say "installing $1"
    shift
    install "$@" || { tail -n 5 "$log" >&2; fail "pip failed; all of its output: $log" "check the network, then run it again"; }
}
install_ours() {
    must_install "fp8-sinks" --no-build-isolation --editable .
    echo "$ours" >"$ours_stamp"
}

if stamped "$stamp" "$locked"; then
    stamped "$ours_stamp" "$ours" || install_ours
    exit 0
fi

say "once: $device ($why), $size, into $venv"
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
python=${PYTHON:-}
if [ -n "$python" ]; then
    suits "$python" || fail "$python is not Python 3.11 to 3.13" "name one that is: make setup PYTHON=python3.12"
else
    for python in python3 python3.13 python3.12 python3.11 ""; do
        [ -z "$python" ] || ! suits "$python" || break
    done
    [ -n "$python" ] || fail "no Python 3.11 to 3.13: python3 is $(python3 -V 2>/dev/null || echo missing)" \
        "on Debian and Ubuntu: apt-get install python3 python3-venv, or python3.12; or name one: make setup PYTHON=PATH"
    [ "$python" = python3 ] || say "python3 is not Python 3.11 to 3.13: taking $python"
fi
# `make bench` alone sets it, to what it was given: nothing stands for the model of the profiles.
model=${FP8_SINKS_BENCH_MODEL-}
if [ -n "${FP8_SINKS_BENCH_MODEL+set}" ] && [ "$device" = gpu ]; then model=${model:-openai/gpt-oss-120b}; fi
"$python" -I scripts/check_machine.py "$device" "$venv" "$model" || exit 4

mkdir -p "$venv" || fail "$venv cannot be made" "name another folder: make setup VENV=DIR"
exec 9>>"$stamp"
flock -n 9 || fail "another set-up works in $venv" "wait until it has ended"
empty_ours
"$python" -I -m venv "$venv" >>"$log" 2>&1 || fail "$python cannot make virtual environments: $(tail -n 1 "$log")" \
    "install its venv package; all of its output: $log"
# Settings of pip's that would take the packages elsewhere, or others than the locked ones. Indexes and proxies stay.
astray=$("$venv/bin/python" -m pip config list |
    grep -E "^(global|install|:env:)\.(target|prefix|root|user|python|no-binary|dry-run|requirement|editable)=" | tr '\n' ' ') || true
[ -z "$astray" ] || fail "pip is told to install otherwise: $astray" "unset it, or set PIP_CONFIG_FILE=/dev/null"

hashed=(--require-hashes --only-binary=:all: --no-compile)
if [ "$device" = cpu ]; then
    say "installing torch for the CPU"
    # A plain index has only CUDA builds of torch; PyTorch's own CPU index has this one.
    install "${hashed[@]}" -r locks/cpu-torch.txt || must_install "torch from PyTorch's CPU index" \
        --index-url https://download.pytorch.org/whl/cpu "${hashed[@]}" -r locks/cpu-torch.txt
fi
must_install "$(cat "${locks[@]}" | grep -c ==) packages" "${hashed[@]}" "${locks[@]/#/-r}"
# On every core, which pip does not; what is left out is compiled when it is first used.
say "compiling"
"$venv/bin/python" -m compileall -q -j 0 -x '/(tests|torch/testing|transformers/models)/' "$venv/lib" >>"$log" 2>&1 || true
install_ours
echo "$locked" >"$stamp"
say "done: $(du -sm "$venv" | cut -f1) MB in $venv"
