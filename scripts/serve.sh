#!/usr/bin/env bash
# scripts/serve.sh baseline|fp8 [options]: set up if needed, then `fp8-sinks serve`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
"$checkout/scripts/setup.sh"
exec "$venv/bin/fp8-sinks" serve "$@"
