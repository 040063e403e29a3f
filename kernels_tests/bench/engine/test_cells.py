"""Cells: names and lengths of the sequences."""

import pytest

from bench.engine.cells import CELLS, JUDGED, Cell, lengths, parse


def test_names_are_read_back():
    assert all(parse(str(cell)) == cell for cell in (*CELLS, *JUDGED, Cell(None, 512), Cell(None, 512, "half")))
    assert str(Cell(None, 32768)) == "full" and parse("fullx512-half") == Cell(None, 512, "half")
    assert {*JUDGED} <= {*CELLS} and len({*CELLS}) == len(CELLS)


@pytest.mark.parametrize("text", ["", "8", "0x512", "8x0", "8x512-near", "x512", "full512", "8x512,1x2"])
def test_other_names_are_refused(text):
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize("batch", [1, 2, 8, 100])
def test_lengths_spread_within_64_tokens_or_half_to_full(batch):
    near, half = (lengths(Cell(batch, 32768, name), batch) for name in ("near", "half"))
    assert max(near) == max(half) == 32768 and len(near) == len(half) == batch
    assert min(near) == (32768 - 63 if batch > 1 else 32768)
    assert min(half) == (16384 if batch > 1 else 32768)
    assert len({*near}) == min(batch, 64)


def test_lengths_are_at_least_a_token_and_alike_in_every_engine():
    assert min(lengths(Cell(8, 16), 8)) == 1
    assert lengths(Cell(8, 512), 8) == lengths(Cell(8, 512), 8) != sorted(lengths(Cell(8, 512), 8))
