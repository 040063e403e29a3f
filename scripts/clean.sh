#!/usr/bin/env bash
# Remove everything that the Makefile's targets create, except runs/.
set -euo pipefail
script=clean
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$checkout"

require_ours
if [ -f "$stamp" ]; then
    exec 9>>"$stamp"
    flock -n 9 || fail "a set-up is running in $venv" "wait until it has ended"
    empty_ours
    rm -r "$venv"
    info "removed $venv"
fi
for path in .flashinfer .pytest_cache .ruff_cache .hypothesis fp8_sinks.egg-info; do
    [ -e "$path" ] || continue
    rm -rf "$path"
    info "removed $path"
done
[ ! -e runs ] || info "kept runs, with its measurements; remove it yourself"
