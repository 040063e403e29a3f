# Sourced by the other scripts: checkout, environment ($VENV) and the checks before it is changed.
unset CDPATH PYTHONHOME PYTHONPATH # run in the locked environment alone
info() { echo "${script:-setup}: $*" >&2; }
fail() { info "$1"; info "remedy: $2"; exit 4; } # 4: docs/exit-codes.md

[ "$(uname -s)" = Linux ] || fail "this is $(uname -s), and the locked packages are for Linux" "use Linux"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$(cd "$checkout" && realpath -m -- "${VENV:-.venv}") # a link is resolved
stamp=$venv/.fp8-sinks-locks # created first; its text names the installed locks

# require_ours: fail unless the environment is absent, an empty folder, or made by set-up.
require_ours() {
    local folder entries
    for folder in "$checkout" "$(realpath -m -- "${HOME:-/}")"; do
        [[ ${folder%/}/ != "${venv%/}"/* ]] ||
            fail "VENV=${VENV:-.venv} is $venv, which holds $folder" "name a separate folder: VENV=.venv"
    done
    [ -e "$venv" ] || return 0
    [ -d "$venv" ] || fail "VENV=${VENV:-.venv} is $venv, which is not a folder" "name another: VENV=.venv"
    [ -f "$stamp" ] && [ ! -L "$stamp" ] || { entries=$(ls -A "$venv") && [ -z "$entries" ]; } ||
        fail "VENV=${VENV:-.venv} is $venv, which is not empty and not made by set-up" "name another, or remove it yourself"
}

# empty_ours: clear the stamp, then remove all of the environment but the stamp.
empty_ours() {
    : >"$stamp"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name "${stamp##*/}" -exec rm -rf {} +
}
