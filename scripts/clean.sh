#!/usr/bin/env bash
# Remove what the verbs of the Makefile have made, but for runs/: what was measured stays.
set -euo pipefail
me=clean
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$checkout"

require_ours
if [ -f "$stamp" ]; then
    exec 9>>"$stamp"
    flock -n 9 || fail "a set-up works in $venv" "wait until it has ended"
    empty_ours
    rm -r "$venv"
    say "removed $venv"
fi
for made in .flashinfer .pytest_cache .ruff_cache .hypothesis fp8_sinks.egg-info; do
    [ -e "$made" ] || continue
    rm -rf "$made"
    say "removed $made"
done
[ ! -e runs ] || say "kept runs, with what was measured; remove it yourself"
