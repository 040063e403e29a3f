"""scripts/vague_names.py: which names it counts, which it lists, and when it fails."""

import sys

import pytest

from vllm_launch.provenance import REPO

SOURCE = """
import numpy as stuff
class BeginMark: ...
def apply(self, path, what, *places, **options):
    found = [one for one in path]
    found = lambda thing: thing
    try:
        for _ in found: pass
    except OSError as trouble:
        pass
    match path:
        case [told, *others]: pass
    def look(done): return [found for found in done]
"""
VAGUE = {"stuff", "BeginMark", "what", "places", "found", "one", "thing", "trouble", "told", "others", "look", "done"}


@pytest.fixture
def vague_names(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    monkeypatch.delitem(sys.modules, "vague_names", raising=False)
    import vague_names

    return vague_names


def test_each_binding_of_a_scope_is_counted_once(vague_names, tmp_path, capsys):
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    assert vague_names.main([str(path)]) == 1
    output = capsys.readouterr()
    listed = [line.removeprefix(f"{path}:").split(": ") for line in output.out.splitlines()]
    assert {name for _, name in listed} == VAGUE
    assert [line for line, name in listed if name == "found"] == ["5", "13"], "once in apply, once in look"
    assert output.err.startswith("13 of 17 names are vague: 76.47% (found 2, ")


@pytest.mark.parametrize(("names", "code"), [(99, 0), (98, 1)])
def test_the_limit(vague_names, tmp_path, capsys, names, code):
    path = tmp_path / "source.py"
    path.write_text("done = 0\n" + "".join(f"name_{number} = 0\n" for number in range(names)))
    assert vague_names.main([str(path)]) == code


@pytest.mark.parametrize(
    ("name", "vague"),
    [
        *((name, True) for name in ("found", "_found_paths", "FoundPaths", "HTTPOne", "done", "DONE")),
        *((name, False) for name in ("foundation", "done_at", "bone", "_")),
    ],
)
def test_words_in_any_spelling(vague_names, name, vague):
    assert vague_names.is_vague(name) == vague
