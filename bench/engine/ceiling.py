"""`python -m bench.engine.ceiling FILE`: write the GPU's read ceiling, bytes/s; the process then frees the GPU."""

import json
import sys
from pathlib import Path

from bench.kernels.ceiling import read_ceiling
from bench.record.files import write_text

if __name__ == "__main__":
    write_text(json.dumps(read_ceiling()), Path(sys.argv[1]))
