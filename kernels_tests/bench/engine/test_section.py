"""An engine result as a report and a plot."""

from PIL import Image

from bench.engine import joining
from bench.engine.result import LeftOut
from bench.engine.section import section
from bench.report import document
from kernels_tests.bench.engine.samples import an_engine_result, an_engine_row, rows_of


def cells_of(block: str, first: str) -> list[str]:
    (line,) = [line for line in block.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_ratios_with_noise_and_the_prediction():
    table = section(an_engine_result()).page[0]
    header = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert header == ["sequences x context", "stock-bf16, ms", "plugin-fp8", "stock-fp8", "FP8 by bytes"]
    cells = cells_of(table, "8 x 32,768")
    assert cells[1] == "7.25 to 7.28" and cells[2].startswith("**0.851 ± ") and cells[2].endswith(", faster**")
    assert cells[3].endswith("(noise)") and 0.8 < float(cells[4]) < 0.95
    full = cells_of(table, "cache full x 32,768")
    assert "tokens/s" in full[1] and full[2].startswith("**1.71") and full[3] == "-"
    assert cells_of(table, "growth, 1 x 2,048 to 122,880")[2:4] == ["0.47", "0.98"]


def test_capacity_starts_and_prefill_are_in_a_table_of_their_own():
    table = section(an_engine_result()).page[1]
    assert cells_of(table, "KV capacity, tokens")[1:] == ["1,642,172", "3,287,584", "3,287,584"]
    assert (
        cells_of(table, "first start, s")[1:] == ["111"] * 3 and cells_of(table, "later starts, s")[1:] == ["22.0"] * 3
    )
    assert cells_of(table, "prefill of 2,048, tokens/s (first token, ratio)")[1] == "20,480 (1)"


def test_failures_and_cells_without_time_are_listed():
    rows = [*rows_of(), *(an_engine_row("plugin-bf16", cell, None) for cell in ("32x8192", "full"))]
    left_out = [LeftOut(variant="stock-fp8", start=2, cell="full")]
    shown = section(an_engine_result(*rows, left_out=left_out))
    assert "plugin-bf16, start 1, at 32x8192, full: " in shown.page[-1] and r"no \| memory" in shown.page[-1]
    assert "stock-fp8 at full, start 2" in shown.not_measured[0]
    failed = section(an_engine_result(an_engine_row("stock-bf16", "1x2048", None)))
    assert failed.draw is None and len(failed.page) == 1 and failed.glance == []


def test_a_joined_result_has_each_ratio_of_its_own_piece():
    slower = [row.model_copy(update={"step_ms": 2 * row.step_ms}) for row in rows_of("stock-bf16", "stock-fp8")]
    parts = [
        an_engine_result(*rows_of("stock-bf16", "plugin-fp8"), identity="a"),
        an_engine_result(*slower, identity="b"),
    ]
    joined = section(joining.join(parts, "joined"))
    alone = section(an_engine_result()).page[0]
    assert cells_of(joined.page[0], "1 x 2,048")[2:4] == cells_of(alone, "1 x 2,048")[2:4]
    assert cells_of(joined.page[0], "1 x 2,048")[1] == "4.44 to 8.92"
    assert any("## Pieces" in block for block in joined.details)


def test_report_and_plot_are_written(tmp_path):
    path = document.write_run(section(an_engine_result()), tmp_path)
    text = path.read_text()
    assert "## Kernels of a step, stock-fp8" in text and r"a\|kernel\<1\>" in text
    (plot,) = (tmp_path / "plots").iterdir()
    assert plot.stat().st_size < 100_000 and Image.open(plot).size[0] > 1000


def test_a_plot_of_stock_alone_and_of_a_full_cache_alone(tmp_path):
    for identity, rows in (
        ("stock", rows_of("stock-bf16")),
        ("full", [row for row in rows_of("stock-bf16", "plugin-fp8") if row.cell == "full"]),
    ):
        document.write_run(section(an_engine_result(*rows, identity=identity, profiles=[])), tmp_path / identity)
        assert len([*(tmp_path / identity / "plots").iterdir()]) == 1


def test_dummy_routing_has_no_prediction(tmp_path):
    """It reads fewer experts than the roofline counts: a measured step may be below the limit."""
    result = an_engine_result(routing="dummy")
    table = section(result).page[0]
    assert {cells_of(table, name)[4] for name in ("1 x 2,048", "8 x 32,768", "cache full x 32,768")} == {"-"}
    document.write_run(section(result), tmp_path)
