"""What a report states of served shapes: quantiles against the law, rivals, misses by name; and how results join."""

import json

import pytest
from click.testing import CliRunner

from bench.cli import bench
from bench.kernels import grid, joining, section, served
from bench.kernels.comparison import BETWEEN_US, law_us
from bench.kernels.grid import BASE, INT8, INT8_STATIC, QUANTISED
from bench.kernels.result import KernelRow, KernelsResult, write_result
from bench.kinds import read
from bench.record.files import write
from flashinfer_patches.errors import Problem
from kernels_tests.bench.kernels.conftest import a_run
from kernels_tests.bench.kernels.samples import a_failed_row, a_kernels_result, a_served_row, our_rows
from kernels_tests.bench.report.reading import row, tables
from vllm_launch.provenance import REPO

CEILING = 4.4e12  # of a_kernels_result
SHAPE = grid.served(9, 32768, "near")
KEYS = {
    *("kernel", "kv_format", "batch", "context", "lengths", "window_left", "table_tokens", "grid"),
    *("kv_bytes", "time_us", "between_us", "rel_l2"),
}


def our_row(ratio: float, shape=SHAPE, kv_format=QUANTISED, between=1.0, **changes) -> KernelRow:
    """Our row whose times are those of the laws, times the ratios."""
    served_row = a_served_row(shape, kv_format=kv_format, **changes)
    times = {"time_us": ratio * law_us(served_row, CEILING), "between_us": between * law_us(served_row, CEILING, 5.0)}
    return served_row.model_copy(update=times)


def peer(ours: KernelRow, ratio: float, kernel="fa2-sinks", kv_format=BASE, rel_l2=2.3e-3) -> KernelRow:
    """A peer whose time is ours over the ratio."""
    return a_served_row(ours.shape, kernel, kv_format, us=ours.time_us / ratio, rel_l2=rel_l2)


def test_quantiles_are_median_nearest_rank_and_worst():
    assert served.quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert served.quantiles([value / 100 for value in range(1, 101)]) == (0.505, 0.95, 1.0)
    assert served.quantiles(range(20, 0, -1)) == (10.5, 19, 20)


def test_the_laws_are_those_of_the_design():
    # 9 x 32768 tokens of 1024 bytes and less at 0.93 x 4.4 TB/s.
    time = a_served_row(SHAPE).kv_bytes / (0.93 * CEILING) * 1e6
    assert BETWEEN_US == 5.0
    result = a_kernels_result()
    assert served.over_law(result, a_served_row(SHAPE, us=80.0)) == pytest.approx(80.0 / (3.5 + time))
    assert served.between_over_law(result, a_served_row(SHAPE, us=80.0)) == pytest.approx(81.0 / (5.0 + time))


def test_the_page_has_quantiles_by_grid_cache_and_length():
    rows = [
        our_row(1.0, between=1.1),
        our_row(1.02, grid.served(9, 8192, "")),
        our_row(1.3, grid.served(9, 17, "")),
        our_row(1, SHAPE, BASE),
    ]
    rows.append(our_row(1.1, grid.served(5, 700, ""), grid="random"))
    table, *_ = served.page(a_kernels_result(*rows), rows)
    assert [list(cells.values()) for cells in tables(table)[0]] == [
        ["random", "e4m3", "64 and more", "1", "**1.10**", "1.10", "1.10", "1.00", "1.00", "1.00"],
        ["server", "bf16", "64 and more", "1", "1.00", "1.00", "1.00", "1.00", "1.00", "1.00"],
        ["server", "e4m3", "64 and more", "2", "1.01", "1.02", "1.02", "**1.05**", "1.10", "1.10"],
        ["server", "e4m3", "under 64", "1", "1.30", "1.30", "1.30", "1.00", "1.00", "1.00"],
    ]


def test_misses_are_named_the_worst_first():
    rows = [our_row(1.1 + 0.05 * index, grid.served(batch, 8192, "near")) for index, batch in enumerate(range(2, 14))]
    rows += [our_row(1.3, grid.served(3, 17, "")), our_row(1.5, grid.served(4, 17, ""))]
    block = served.page(a_kernels_result(*rows), rows)[-1]
    names = block.split(": ", 1)[1].split("; ")
    assert names[:2] == ["13 x 8,192, near e4m3 1.65", "12 x 8,192, near e4m3 1.60"]
    assert "4 x 17 e4m3 1.50" in names and not any("3 x 17 e4m3 1.3" in name for name in names)
    assert len(names) == served.MOST_NAMED + 1 and names[-1] == "and 3 more."


def test_rivals_are_the_fastest_peers_of_their_kind():
    first, second = our_row(1.0), our_row(1.0, grid.served(3, 8192, "uniform"))
    in_bf16 = our_row(1.0, kv_format=BASE)
    rows = [first, second, in_bf16, peer(first, 0.9), peer(first, 1.2, "xqa-sinks", QUANTISED, rel_l2=3.7e-2)]
    rows += [peer(second, 0.7), peer(second, 0.8, "vllm-fa3"), peer(in_bf16, 1.01, "vllm-fa3")]
    rows.append(a_failed_row(SHAPE, "fa2-sinks", QUANTISED).model_copy(update={"grid": "server"}))
    table = served.page(a_kernels_result(*rows), rows)[1]
    fastest_bf16 = first.time_us / in_bf16.time_us
    by_rival = {cells["against"]: cells for cells in tables(table)[0]}
    assert by_rival["best accurate peer"]["shapes"] == "2"
    assert by_rival["xqa-sinks e4m3"]["worst"] == "**1.20 at 9 x 32,768, near**"
    assert by_rival["best bf16 peer"]["our time / theirs, median"] == f"{max(1.01, 0.9 / fastest_bf16):.2f}"
    assert "9 x 32,768, near e4m3 against xqa-sinks e4m3 1.20" in served.page(a_kernels_result(*rows), rows)[-1]


def test_int8_is_judged_by_the_law_of_its_own_bytes_and_compared_with_e4m3():
    rows = [our_row(ratio, kv_format=name) for ratio, name in ((1.0, QUANTISED), (1.1, INT8), (1.3, INT8_STATIC))]
    rows += [our_row(1.25, grid.served(3, 8192, ""), INT8), peer(rows[0], 2.0)]
    law, rivals, misses, _ = served.page(a_kernels_result(*rows), rows)
    by_format = {cells["cache"]: cells for cells in tables(law)[0]}
    assert by_format["int8"]["x law, worst"] == "**1.25**" and by_format["int8-static"]["x law, median"] == "**1.30**"
    assert served.BOUNDS[INT8] == served.BOUNDS[INT8_STATIC] == served.BOUNDS[QUANTISED]
    assert "9 x 32,768, near int8-static 1.30; 3 x 8,192 int8 1.25" in misses
    ratios = {cells[""]: (cells["against"], cells["shapes"], cells["worst"]) for cells in tables(rivals)[0]}
    ratio = rows[1].time_us / rows[0].time_us
    assert ratios["sink-decode int8"] == ("sink-decode e4m3", "1", f"{ratio:.2f} at 9 x 32,768, near")
    assert ratio == pytest.approx(1.1 * 1.0625, rel=0.02) and ratios["sink-decode e4m3"][0] == "best accurate peer"


def test_every_shape_is_in_the_details():
    rows = [our_row(1.25), our_row(1.0, kv_format=BASE), our_row(1.0, grid.served(3, 8192, "uniform"))]
    rows.append(peer(rows[1], 0.8))
    text = "\n\n".join(served.details(a_kernels_result(*rows), rows))
    cells = row(text, "9 x 32,768, near")
    assert "(**1.25**), " in cells["e4m3, us (x law), between"] and "(1.00), " in cells["bf16, us (x law), between"]
    assert cells["best accurate peer, us"].endswith(", fa2-sinks bf16")
    assert list(row(text, "3 x 8,192, uniform").values())[-2:] == ["-", "-"]


def test_a_section_of_both_grids_and_of_each():
    served_rows = [our_row(1.05), our_row(1.0, kv_format=BASE)]
    alone = section.section(a_kernels_result(*served_rows))
    assert alone.draw is None and "as a server calls them" in alone.subject
    assert alone.glance[0][-1] == "median 1.05, p95 1.05, worst 1.05 of the law"
    combined = section.section(a_kernels_result(*our_rows(), *served_rows))
    assert combined.draw and len(combined.glance) == 2 and combined.subject != alone.subject
    assert not any("x law" in block for block in section.section(a_kernels_result(*our_rows())).page)
    failed = a_failed_row(SHAPE, "sink-decode").model_copy(update={"grid": "server"})
    assert any("Failed" in block for block in section.section(a_kernels_result(failed)).page)


def test_compact_rows_have_the_keys_that_others_read():
    assert set(json.loads(our_row(1.0).model_dump_json())) == KEYS | {"layout"}
    content = json.loads(a_served_row(SHAPE, "fa2-sinks", BASE, setting="PDL").model_dump_json())
    assert content["setting"] == "PDL" and content["lengths"] == "near" and content["table_tokens"] == 131072
    assert KEYS | {"error", "samples_us"} <= set(json.loads(our_rows()[0].model_dump_json()))
    for served_row in (our_row(1.0), a_failed_row(SHAPE).model_copy(update={"grid": "server"})):
        assert KernelRow.model_validate_json(served_row.model_dump_json()) == served_row


@pytest.mark.parametrize("changes", [{"between_us": None}, {"time_us": None}, {"rel_l2": None}, {"error": "failed"}])
def test_a_compact_row_has_all_figures_or_an_error(changes):
    with pytest.raises(ValueError, match="expected"):
        KernelRow(**(our_row(1.0).model_dump() | changes))


def test_the_result_of_a_whole_server_and_random_grid_is_under_a_mebibyte(tmp_path):
    """Every row that the run would make, with figures of the usual length."""
    points = grid.points(["server", "random"])
    run, rows = a_run(tmp_path, points=points), []
    for point in points:
        for kernel in run.kernels:
            if not kernel.skip_reason(point):
                setting = kernel.settings[-1] if len(kernel.settings) > 1 else None
                figures = {"between_us": 12.345, "grid": point.grid, "setting": setting}
                rows.append(a_served_row(point.shape, kernel.name, kernel.kv_format, us=12.345, **figures))
    result = a_kernels_result(*rows)
    write_result(result, tmp_path / "result.json")
    # Peers, ours in three formats at every shape, and int8-static at 310.
    assert len(rows) == 2980 + 860 + 310 and 500_000 < (tmp_path / "result.json").stat().st_size < 1 << 20
    assert read(tmp_path / "result.json") == result


def test_kept_results_are_read_and_reported():
    results = [read(file) for file in (REPO / "results").glob("kernels-*.json")]
    assert {kernel_row.grid for result in results for kernel_row in result.rows} == {"standard", "server", "random"}
    assert all(section.section(result).page for result in results)


OTHER_PATCH = a_kernels_result().provenance.model_copy(update={"patch": "another"})


def part(number: int, count: int, *rows, ceiling=CEILING, **changes) -> KernelsResult:
    fields = {"part": f"{number}/{count}", "read_ceiling_bytes_per_s": ceiling} | changes
    return a_kernels_result(*rows, identity=f"part-{number}").model_copy(update=fields)


def test_parts_join_and_each_row_is_judged_by_its_own_ceiling():
    second = our_row(1.0, grid.served(3, 8192, ""))
    joined = joining.join([part(2, 2, second, ceiling=4.2e12), part(1, 2, our_row(1.0))], "joined")
    assert (joined.id, joined.part, joined.part_ceilings) == ("joined", None, [4.4e12, 4.2e12])
    assert joined.read_ceiling_bytes_per_s == 4.4e12
    assert [(joined_row.batch, joined_row.part) for joined_row in joined.rows] == [(9, 1), (3, 2)]
    assert served.over_law(joined, joined.rows[0]) == pytest.approx(1.0)
    assert served.over_law(joined, joined.rows[1]) == pytest.approx(second.time_us / law_us(second, 4.2e12))
    assert KernelsResult.model_validate_json(joined.model_dump_json()) == joined


@pytest.mark.parametrize(
    "parts",
    [
        [part(1, 2, our_row(1.0))],
        [part(1, 2, our_row(1.0)), part(1, 2, our_row(1.0))],
        [part(1, 2, our_row(1.0)), part(2, 3, our_row(1.0))],
        [a_kernels_result(our_row(1.0))],
        [part(1, 2, our_row(1.0)), part(2, 2, our_row(1.0), provenance=OTHER_PATCH)],
    ],
)
def test_parts_that_are_missing_or_differ_are_refused(parts):
    with pytest.raises(Problem) as refusal:
        joining.join(parts, "joined")
    assert refusal.value.kind == "file" and refusal.value.remedy


def test_the_command_joins_files_and_folders(tmp_path):
    (tmp_path / "second").mkdir()
    write(part(1, 2, our_row(1.0)), tmp_path / "first.json")
    write(part(2, 2, our_row(1.0, grid.served(3, 8192, ""))), tmp_path / "second" / "result.json")
    options = ["kernels", "--join", str(tmp_path / "first.json"), "--join", str(tmp_path / "second")]
    joined = CliRunner().invoke(bench, [*options, "--run-dir", str(tmp_path / "joined")])
    assert joined.exit_code == 0, joined.output
    assert len(read(tmp_path / "joined").rows) == 2 and "x law" in (tmp_path / "joined" / "report.md").read_text()
    assert CliRunner().invoke(bench, [*options, "--run-dir", str(tmp_path / "joined")]).exit_code != 0
    assert CliRunner().invoke(bench, ["kernels", "--join", str(tmp_path / "none.json")]).exit_code != 0
