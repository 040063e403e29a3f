#!/usr/bin/env bash
# Install the locked packages for this machine's device into $VENV (default .venv). Idempotent.
#   DEVICE=cpu|gpu  skips the detection    VLLM=0.26|0.33  the release on a GPU    PYTHON=python3.12  skips the search
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
    device=cpu why="nvidia-smi shows no GPU"
fi
case $device in
cpu) locks=(locks/cpu.txt locks/dev.txt locks/world-model.txt) size="2 GB on disk, about 2 minutes (make bench then takes about 5)" ;;
gpu) locks=("locks/gpu-vllm-$vllm.txt" locks/dev.txt) size="12 GB on disk, 4 GB to download, 5 minutes or more" ;;
*) fail "DEVICE=$device is neither cpu nor gpu" "make setup DEVICE=cpu" ;;
esac
[ -f "${locks[0]}" ] || fail "no lock file ${locks[0]}" "VLLM=0.26 or VLLM=0.33"

# Two stamps: changed locks need a new environment, a changed pyproject.toml or checkout only a new install of ours.
locked="$device $(cat "${locks[@]}" locks/cpu-torch.txt | cksum)" ours="$(cksum <pyproject.toml) $checkout"
ours_stamp=$venv/.fp8-sinks-ours
stamped() { [ -x "$venv/bin/python" ] && [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
log=$venv/setup.log
install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps "$@" >>"$log" 2>&1; }
must_install() {
    info "installing $1"
    shift
    install "$@" || { tail -n 5 "$log" >&2; fail "pip failed; all of its output: $log" "check the network, then run this again"; }
}
install_ours() {
    must_install "fp8-sinks" --no-build-isolation --editable .
    echo "$ours" >"$ours_stamp"
}

if stamped "$stamp" "$locked"; then
    stamped "$ours_stamp" "$ours" || install_ours
    exit 0
fi

info "for the $device ($why): $size, into $venv"
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
python=${PYTHON:-}
if [ -n "$python" ]; then
    suits "$python" || fail "$python is not Python 3.11 to 3.13" "name a supported one: make setup PYTHON=python3.12"
else
    for python in python3 python3.13 python3.12 python3.11 ""; do
        [ -z "$python" ] || ! suits "$python" || break
    done
    [ -n "$python" ] || fail "no Python 3.11 to 3.13: python3 is $(python3 -V 2>/dev/null || echo missing)" \
        "on Debian and Ubuntu: apt-get install python3 python3-venv, or python3.12; or name another: make setup PYTHON=PATH"
    [ "$python" = python3 ] || info "python3 is not Python 3.11 to 3.13: using $python"
fi
# Set by `make bench` alone; empty: the model of the profiles.
model=${FP8_SINKS_BENCH_MODEL-}
if [ -n "${FP8_SINKS_BENCH_MODEL+set}" ] && [ "$device" = gpu ]; then model=${model:-openai/gpt-oss-120b}; fi
"$python" -I scripts/check_machine.py "$device" "$venv" "$model" || exit 4

mkdir -p "$venv" || fail "$venv cannot be made" "name another folder: make setup VENV=DIR"
exec 9>>"$stamp"
flock -n 9 || fail "another set-up is running in $venv" "wait until it has ended"
empty_ours
"$python" -I -m venv "$venv" >>"$log" 2>&1 || fail "$python cannot make virtual environments: $(tail -n 1 "$log")" \
    "install its venv package; all of its output: $log"
# Refuse pip settings that change where or which packages are installed. Indexes and proxies are allowed.
astray=$("$venv/bin/python" -m pip config list |
    grep -E "^(global|install|:env:)\.(target|prefix|root|user|python|no-binary|dry-run|requirement|editable)=" | tr '\n' ' ') || true
[ -z "$astray" ] || fail "these settings of pip change what is installed: $astray" "unset them, or set PIP_CONFIG_FILE=/dev/null"

hashed=(--require-hashes --only-binary=:all: --no-compile)
if [ "$device" = cpu ]; then
    info "installing torch for the CPU"
    # The default index has only CUDA builds of torch; PyTorch's CPU index has this one.
    install "${hashed[@]}" -r locks/cpu-torch.txt || must_install "torch from PyTorch's CPU index" \
        --index-url https://download.pytorch.org/whl/cpu "${hashed[@]}" -r locks/cpu-torch.txt
fi
must_install "$(cat "${locks[@]}" | grep -c ==) packages" "${hashed[@]}" "${locks[@]/#/-r}"
# pip compiles on one core; what is left out here is compiled at its first import.
info "compiling"
"$venv/bin/python" -m compileall -q -j 0 -x '/(tests|torch/testing|transformers/models)/' "$venv/lib" >>"$log" 2>&1 || true
install_ours
echo "$locked" >"$stamp"
info "done: $(du -sm "$venv" | cut -f1) MB in $venv"
