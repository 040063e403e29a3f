#!/usr/bin/env bash
# Set up $VENV (default .venv) from the lock files, for the device that this machine has. Idempotent.
#   DEVICE=cpu|gpu  instead of looking    VLLM=0.26|0.33  the release on a GPU    PYTHON=python3
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv} python=${PYTHON:-python3} device=${DEVICE:-} vllm=${VLLM:-0.26}

say() { echo "setup: $*" >&2; }
fail() { say "$1"; say "remedy: $2"; exit 15; }

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    fail "$python is not Python 3.11 to 3.13" "name one that is: make setup PYTHON=python3.12"

if [ -n "$device" ]; then
    why="DEVICE=$device was given"
elif gpus=$(nvidia-smi -L 2>/dev/null) && [ -n "$gpus" ]; then
    device=gpu why="nvidia-smi shows ${gpus%% (*}"
else
    device=cpu why="no NVIDIA GPU answers nvidia-smi"
fi
case $device in
cpu) locks=(locks/cpu.txt locks/dev.txt) ;;
gpu) locks=("locks/gpu-vllm-$vllm.txt" locks/dev.txt) ;;
*) fail "DEVICE=$device is neither cpu nor gpu" "make setup DEVICE=cpu" ;;
esac
[ -f "${locks[0]}" ] || fail "no lock file ${locks[0]}" "VLLM=0.26 or VLLM=0.33"

# Two stamps: other locks mean a new environment, another pyproject.toml only our own package again.
locked="$device $(cat "${locks[@]}" locks/cpu-torch.txt | cksum)" ours=$(cksum <pyproject.toml)
stamped() { [ -f "$venv/.fp8-sinks-$1" ] && [ "$(cat "$venv/.fp8-sinks-$1")" = "$2" ]; }
log=$venv/setup.log
install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps "$@" >>"$log" 2>&1; }
must_install() {
    say "installing $1"
    shift
    install "$@" || { tail -n 5 "$log" >&2; fail "pip failed; all of its output: $log" "check the network, then run it again"; }
}
install_ours() {
    must_install "fp8-sinks" --no-build-isolation --editable .
    echo "$ours" >"$venv/.fp8-sinks-ours"
}

if stamped locks "$locked"; then
    stamped ours "$ours" || install_ours
    exit 0
fi

say "$device ($why), locks ${locks[*]}, into $venv"
"$python" -m venv --clear "$venv" || fail "$python cannot make virtual environments" "install its venv package"
if [ "$device" = cpu ]; then
    say "installing torch for the CPU"
    # A plain index has only CUDA builds of torch; PyTorch's own CPU index has this one.
    install -r locks/cpu-torch.txt ||
        must_install "torch from PyTorch's CPU index" --index-url https://download.pytorch.org/whl/cpu -r locks/cpu-torch.txt
fi
must_install "$(cat "${locks[@]}" | grep -vc '^#') packages" "${locks[@]/#/-r}"
install_ours
echo "$locked" >"$venv/.fp8-sinks-locks"
say "done: $(du -sm "$venv" | cut -f1) MB in $venv"
