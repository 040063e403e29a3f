"""Files are written whole or not at all."""

import json

import pytest
from world.files import replacing, write_json


def test_a_write_that_fails_leaves_the_file(tmp_path):
    path = tmp_path / "record.json"
    write_json({"frames": 1}, path)
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"frames": 1}
    write_json({"frames": 2}, path)
    assert json.loads(path.read_text()) == {"frames": 2} and [*tmp_path.iterdir()] == [path]
