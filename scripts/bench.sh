#!/usr/bin/env bash
# scripts/bench.sh baseline|fp8 [options]: set up if needed, then `fp8-sinks bench serving`.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
"$here/scripts/setup.sh"
exec "$here/.venv/bin/fp8-sinks" bench serving "$@"
