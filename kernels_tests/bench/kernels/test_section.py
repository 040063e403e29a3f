"""What a report states of a kernels result: tables, title, failures, what was left out, and the plot."""

import pytest

from bench.kernels import comparison, plot, section
from bench.kernels.peers import OURS
from bench.kernels.result import KernelsResult
from kernels_tests.bench.kernels.samples import a_failed_row, a_kernel_row, a_kernels_result, fa2_rows, our_rows
from kernels_tests.bench.report.reading import row
from lowp.paged.shapes import Shape, even

CEILING = 4.4e12  # of a_kernels_result
SMALL, LARGE, RAGGED = even(1, 2048), even(32, 8192), Shape((8192, 512, 512, 512))
PEERS = [
    a_kernel_row(SMALL, "xqa-sinks", "e4m3", us=6.6, rel_l2=3.6e-2),
    a_kernel_row(SMALL, "fa2-sinks", "e4m3", us=9.9),
    a_kernel_row(SMALL, "vllm-fa3", "bf16", us=8.0),
    a_kernel_row(LARGE, "fa2-sinks", "bf16", us=131.0),
]


def page_row(name, *rows) -> list[str]:
    """A row of the page's table."""
    (table,) = section.page_table(list(rows), CEILING)
    return list(row(table, name).values())


def test_our_kernel_stands_beside_floor_ceiling_and_the_best_accurate_peer():
    # 2,097,152 bytes at 4.4 TB/s take 0.48 us.
    cells = page_row("1 x 2,048", *our_rows(), *PEERS)
    assert cells == ["1 x 2,048", "0.48", "3.30", "14%", "8.00, vllm-fa3 bf16", "2.42x"]
    assert page_row("32 x 8,192", *our_rows(), *PEERS)[-1] == "2.02x"
    assert page_row("1 x 2,048", *our_rows(), PEERS[0])[-2:] == ["-", "-"], "no accurate peer"


def test_int8_stands_beside_e4m3_where_it_was_measured():
    int8 = a_kernel_row(SMALL, OURS, "int8", us=3.6)
    assert page_row("1 x 2,048", *our_rows(), *PEERS, int8)[-2:] == ["2.42x", "3.60 (1.09)"]
    assert page_row("32 x 8,192", *our_rows(), *PEERS, int8)[-1] == "-"


@pytest.mark.parametrize(
    ("us", "ratio"),
    [(4.8, "1.04x"), (4.95, "**1.01x, not faster**"), (5.05, "**0.99x, not faster**"), (6.0, "**0.83x, not faster**")],
)
def test_a_ratio_is_marked_where_the_samples_are_not_all_faster(us, ratio):
    pair = a_kernel_row(SMALL, OURS, "e4m3", us=us), a_kernel_row(SMALL, "fa2-sinks", "bf16", us=5.0)
    assert page_row("1 x 2,048", *pair)[-1] == ratio


def test_shapes_without_another_kernel_are_left_to_the_details():
    lone = a_kernel_row(even(1, 2048, layout="NHD"), OURS, "e4m3", us=5.0)
    rows = [*our_rows(), *PEERS, lone]
    assert "NHD" not in section.page_table(rows, CEILING)[0]
    assert "1 x 2,048, NHD" in section.time_table(rows, "e4m3", CEILING)[1]
    assert page_row("1 x 2,048, NHD", lone)[-2:] == ["-", "-"]
    assert section.page_table(fa2_rows(), CEILING) == []


def test_all_kernels_have_their_time_and_error_and_ours_its_law():
    rows = [a_kernel_row(SMALL, OURS, "e4m3", us=5.0, rel_l2=1.7e-3), a_failed_row(LARGE, "vllm-fa3"), *PEERS]
    _, table = section.time_table(rows, "e4m3", CEILING)
    assert row(table, "1 x 2,048") == {
        "batch x context": "1 x 2,048",
        "floor, us": "0.48",
        OURS: "5.00, 1.7e-03, **law +24.6%**",
        "vllm-fa3": "-",
        "xqa-sinks": "6.60, **3.6e-02**",
        "fa2-sinks": "9.90, 2.3e-03",
    }
    assert row(table, "32 x 8,192")["vllm-fa3"] == "**failed**"
    within = row(section.time_table(our_rows(), "e4m3", CEILING)[1], "1 x 2,048")
    assert within[OURS].endswith(", law met")
    assert section.time_table(PEERS[:1], "bf16", CEILING) == []


def test_title_and_glance_are_about_our_kernel_against_all_others(monkeypatch):
    odd = [a_kernel_row(RAGGED, OURS, "e4m3", us=100.0), a_kernel_row(RAGGED, "xqa-sinks", "e4m3", us=1.0)]
    result = a_kernels_result(*our_rows(), *PEERS, *odd)
    ((machine, name, error, _, speed),) = section.section(result).glance
    assert (machine, name, error) == ("NVIDIA H200", f"{OURS} e4m3", "relL2 ≤ 1.7e-03")
    assert speed.startswith("2.00x to 2.02x the fastest") and speed.endswith("within the law at 2 of 2 shapes")
    assert drawn_title(result, monkeypatch) == f"{OURS} e4m3 on NVIDIA H200: {speed}"
    assert "x the" not in section.speed(our_rows(), CEILING)
    assert section.speed(odd, CEILING).endswith("within the law at 0 of 1 shapes")
    assert section.section(a_kernels_result()).glance == [] and section.speed(fa2_rows(), CEILING) is None
    assert drawn_title(a_kernels_result(*PEERS), monkeypatch) == "Decode kernels on NVIDIA H200"


def drawn_title(result, monkeypatch) -> str:
    titles = []
    monkeypatch.setattr(plot, "kernels_plot", lambda title, *_: titles.append(title))
    section.section(result).draw(None)
    return titles[0]


def test_the_page_names_the_conditions_and_our_errors():
    (conditions,) = (block for block in section.section(a_kernels_result(*our_rows())).page if "us:" in block)
    for text in (
        "64 query heads over 8 KV heads of 64",
        "4.40 TB/s",
        "relL2 at most 0.004",
        f"{OURS} e4m3: relL2 at most 1.7e-03",
    ):
        assert text in conditions
    assert OURS not in section.section(a_kernels_result()).page[0]


def test_failures_of_a_kernel_with_the_same_error_share_a_line():
    shapes = [even(batch, 2048) for batch in (1, 2, 3, 4)]
    block = section.section(a_kernels_result(*fa2_rows(), a_failed_row(shapes[0]))).page[-1]
    assert block == "Failed:\n\n- xqa-sinks e4m3 at 1 x 2,048: RuntimeError: no \\| such kernel"
    block = section.section(a_kernels_result(*map(a_failed_row, shapes))).page[-1]
    assert "xqa-sinks e4m3 at 4 shapes: RuntimeError" in block
    assert not any("Failed" in block for block in section.section(a_kernels_result()).page)


def left_out(kernel, shape, reason) -> dict:
    return {"kernel": kernel, "kv_format": "e4m3", "shape": shape, "reason": reason}


def test_kernels_left_out_for_the_same_reason_share_a_line():
    entries = [left_out(kernel, shape, "cannot") for kernel in "ab" for shape in ("1x2", "3x4")]
    entries.append(left_out("vllm-fa3", None, "no vLLM"))
    result = KernelsResult.model_validate(a_kernels_result().model_dump() | {"left_out": entries})
    shown = section.section(result)
    assert shown.not_measured == ["vllm-fa3: no vLLM"]
    assert "Not measured, by design:\n\n- a, b at 2 shapes: cannot" in shown.details


def test_the_times_of_every_format_are_in_the_details():
    details = "\n\n".join(section.section(a_kernels_result(*our_rows())).details)
    assert row(details, "32 x 8,192")[OURS] == "65.0, 1.7e-03, law met"
    assert details.count("## All kernels") == 2


def test_a_result_without_our_kernel_or_any_time_has_a_section():
    assert section.section(a_kernels_result()).draw
    failed = section.section(a_kernels_result(a_failed_row(SMALL)))
    assert failed.draw is None and any("Failed" in block for block in failed.page)


def drawn(result, monkeypatch, tmp_path):
    """Each panel's lines: label -> list of (x, y) lists, one for each line."""
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append(figure))
    plot.kernels_plot("title", result.rows, CEILING, tmp_path / "a.png")
    return figures[0].axes


def shares(panel, colour) -> list[list[tuple[float, float]]]:
    lines = [line for line in panel.lines if line.get_color() == colour and line.get_marker() != "None"]
    return [list(zip(map(int, line.get_xdata()), map(float, line.get_ydata()), strict=True)) for line in lines]


def test_the_plot_shows_shares_of_the_ceiling_and_joins_points_of_a_batch_alone(monkeypatch, tmp_path):
    result = a_kernels_result(*fa2_rows(), a_kernel_row(RAGGED), a_kernel_row(SMALL, OURS, "e4m3", us=3.3))
    e4m3, bf16 = drawn(result, monkeypatch, tmp_path)
    expected = {
        row.shape: comparison.floor_us(row, 4.4e12) / row.time_us for row in fa2_rows() if row.kv_format == "e4m3"
    }
    first, second = shares(e4m3, e4m3.lines[0].get_color())
    assert first == [
        (index, pytest.approx(expected[even(1, context)])) for index, context in enumerate((2048, 8192, 32768, 131072))
    ]
    assert second == [(4, pytest.approx(expected[even(8, 8192)]))]
    assert [tick.get_text() for tick in bf16.get_xticklabels()][3:] == ["1 x 131,072", "8 x 8,192"]
    (legend,) = e4m3.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["fa2-sinks (relL2 up to 2.3e-03)", f"{OURS} (relL2 up to 2.3e-03)", names[2]]
    (law,) = (line for line in e4m3.lines if line.get_label() == names[2])
    assert list(law.get_ydata()) == [pytest.approx(0.48 / 4.01, abs=0.005)] * 2, "the law at 1 x 2,048"
    assert set(bf16.get_legend_handles_labels()[1]) == {names[0]}


def test_a_plot_of_a_single_format_has_a_single_panel(monkeypatch, tmp_path):
    rows = [row for row in fa2_rows() if row.kv_format == "bf16"]
    (panel,) = drawn(a_kernels_result(*rows), monkeypatch, tmp_path)
    assert len(shares(panel, panel.lines[0].get_color())) == 2
