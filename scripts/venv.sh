# Sourced by the scripts beside it: the checkout, the environment that VENV names, and what may be done to it.
unset CDPATH PYTHONHOME PYTHONPATH # a verb runs in the locked environment alone
say() { echo "${me:-setup}: $*" >&2; }
fail() { say "$1"; say "remedy: $2"; exit 4; }

[ "$(uname -s)" = Linux ] || fail "this is $(uname -s), and the locked packages are for Linux" "use Linux"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$(cd "$checkout" && realpath -m -- "${VENV:-.venv}") # of a link, the folder that it leads to
stamp=$venv/.fp8-sinks-locks # there from the first moment on; what it holds says what is installed

# require_ours: end with a line, unless the environment is absent, an empty folder, or one that set-up has made.
require_ours() {
    local folder entries
    for folder in "$checkout" "$(realpath -m -- "${HOME:-/}")"; do
        [[ ${folder%/}/ != "${venv%/}"/* ]] ||
            fail "VENV=${VENV:-.venv} is $venv, which holds $folder" "name a folder of its own: VENV=.venv"
    done
    [ -e "$venv" ] || return 0
    [ -d "$venv" ] || fail "VENV=${VENV:-.venv} is $venv, which is not a folder" "name another: VENV=.venv"
    [ -f "$stamp" ] && [ ! -L "$stamp" ] || { entries=$(ls -A "$venv") && [ -z "$entries" ]; } ||
        fail "VENV=${VENV:-.venv} is $venv, which is not empty and not made by set-up" "name another, or remove it yourself"
}

# empty_ours: take everything out of our environment but its stamp, which comes first and says that nothing is installed.
empty_ours() {
    : >"$stamp"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name "${stamp##*/}" -exec rm -rf {} +
}
