"""`python -m bench.record.schema`: write docs/result.schema.json from bench/result.py."""

import json

from bench.kinds import RESULT
from bench.record.files import write_text
from vllm_launch.provenance import REPO

PATH = REPO / "docs" / "result.schema.json"


def text() -> str:
    """The JSON schema of a result file."""
    return json.dumps(RESULT.json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    write_text(text(), PATH)
