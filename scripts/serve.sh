#!/usr/bin/env bash
# scripts/serve.sh baseline|fp8 [options]: set up if needed, then `fp8-sinks serve`.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
"$here/scripts/setup.sh"
exec "$here/.venv/bin/fp8-sinks" serve "$@"
