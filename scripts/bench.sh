#!/usr/bin/env bash
# scripts/bench.sh baseline|fp8 [options]: set up if needed, then `fp8-sinks bench serving`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
"$checkout/scripts/setup.sh"
exec "$venv/bin/fp8-sinks" bench serving "$@"
