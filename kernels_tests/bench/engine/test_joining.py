"""Several pieces in one result."""

import pytest

from bench.engine import joining
from bench.engine.result import EngineResult, LeftOut
from bench.record import files
from flashinfer_patches.errors import Problem
from kernels_tests.bench.engine.samples import an_engine_result, rows_of


def test_rows_keep_their_piece():
    first = an_engine_result(*rows_of("stock-bf16", "plugin-fp8"), identity="first")
    second = an_engine_result(*rows_of("stock-bf16", "stock-fp8"), identity="second")
    joined = joining.join([first, second], "joined")
    assert [piece.id for piece in joined.pieces] == ["first", "second"]
    assert {row.piece for row in joined.rows if row.variant == "stock-fp8"} == {2}
    assert {row.piece for row in joined.rows if row.variant == "stock-bf16"} == {1, 2}
    extended = joining.join([joined, an_engine_result(identity="third")], "extended")
    assert {row.piece for row in extended.rows} == {1, 2, 3} and [entry.piece for entry in extended.profiles] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": "gpt-oss-20b"},
        {"compilation": "default"},
        {"routing": "dummy"},
        {"rows": [row.model_copy(update={"vllm": "0.33.0"}) for row in rows_of()]},
        {"rows": [row.model_copy(update={"tensor_parallel": 2}) for row in rows_of()]},
    ],
    ids=["shape", "compilation", "routing", "vllm", "tensor_parallel"],
)
def test_results_of_other_conditions_are_refused(changes):
    with pytest.raises(Problem) as caught:
        joining.join([an_engine_result(identity="a"), an_engine_result(identity="b", **changes)], "joined")
    assert caught.value.kind == "file"


def test_a_piece_is_joined_once(tmp_path):
    files.write(an_engine_result(), tmp_path / "a.json")
    with pytest.raises(Problem) as caught:
        joining.write([tmp_path / "a.json"] * 2, tmp_path / "joined")
    assert caught.value.kind == "file" and not (tmp_path / "joined").exists()


def test_a_row_of_no_piece_is_refused():
    content = an_engine_result().model_dump(mode="json")
    content["left_out"] = [LeftOut(piece=2, variant="stock-fp8", start=1, cell="full").model_dump()]
    with pytest.raises(ValueError, match="piece 2 of 1"):
        EngineResult.model_validate(content)
