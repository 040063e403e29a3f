"""Writing records."""

import json

from pydantic import BaseModel

from bench.record import files


class Samples(BaseModel):
    text: str = "[\n 1,\n 2\n]"
    values: list[float] = [0.25, -3.0, 1e-12]
    nested: list[list[int]] = [[1, 2], [], [3]]
    texts: list[str] = ["[1,", "2]"]
    gaps: list[int | None] = [1, None]


def test_number_lists_take_a_single_line(tmp_path):
    path = tmp_path / "samples.json"
    files.write(Samples(), path)
    text = path.read_text()
    assert json.loads(text) == Samples().model_dump()
    assert ' "values": [0.25, -3.0, 1e-12],\n "nested": [\n  [1, 2],\n  [],\n  [3]\n ],\n' in text
    assert ' "gaps": [\n  1,\n  null\n ]\n}\n' in text
