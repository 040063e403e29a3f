"""The table of KV cache formats."""

import pytest

from bench.accuracy import formats
from bench.serving import section, tables
from kernels_tests.bench.report.reading import row as cells_of
from kernels_tests.bench.samples import a_record, a_relative_gate, a_resolved, a_result, a_row

MEAN = "mean |Δ log p|"
MODEL = a_result().model  # 6 layers of 2 heads of 64


def profiles():
    int8 = a_resolved("int8_per_token_head").model_copy(update={"kv_format": None})
    static = a_resolved("fp8").model_copy(update={"kv_format": "int8-static"})
    return [
        a_row(),
        a_row("fp8", "fp8", accuracy=a_record()),
        a_row("int8", "int8_per_token_head", accuracy=a_record(0.02, relative=a_relative_gate(0.02)), resolved=int8),
        a_row("int8-static", "fp8", accuracy=a_record(0.04), resolved=static),
        a_row("quick", "fp8"),
    ]


def test_each_profile_has_its_error_and_its_bytes():
    text = "\n\n".join(formats.table(profiles(), MODEL, "KV capacity", lambda row: "as much"))
    shown = {name: cells_of(text, name) for name in ("baseline", "fp8", "int8", "int8-static")}
    values = 6 * 2 * 2 * 64
    assert {name: (each["KV format"], each["bytes a token"]) for name, each in shown.items()} == {
        "baseline": ("bf16", f"{2 * values:,}"),
        "fp8": ("e4m3", f"{values:,}"),
        "int8": ("int8", f"{values + 6 * 2 * 2 * 4:,}"),
        "int8-static": ("int8-static", f"{values:,}"),
    }
    assert (shown["fp8"]["KL"], shown["fp8"]["top-1 agreement"]) == ("0.007", "0.95")
    assert f"{MEAN} 0.100" in shown["fp8"]["answers"]
    assert [each["ratio"] for each in shown.values()] == ["-", "-", f"passed, {MEAN} 0.2x fp8", "-"]
    assert "quick" not in text and {each["KV capacity"] for each in shown.values()} == {"as much"}


def test_layers_that_differ_and_unknown_formats_have_no_size():
    skipped = a_resolved("fp8").model_copy(update={"kv_skip_layers": ["sliding_window"]})
    for resolved in (skipped, a_resolved("nvfp4")):
        assert formats.bytes_per_token(MODEL, resolved) is None


def test_without_a_relative_gate_there_is_no_table():
    assert formats.table(profiles()[:2], MODEL, "", str) == formats.table([], MODEL, "", str) == []


@pytest.mark.parametrize("widened", [False, True])
def test_a_serving_report_has_the_speed_beside_the_error(widened):
    rows = profiles()
    if widened:
        rows[1] = rows[1].model_copy(
            update={"resolved": rows[1].resolved.model_copy(update={"cpu_attention": "widened"})}
        )
    page = "\n\n".join(section.section(a_result(*rows)).page)
    (point,) = tables.page_points(rows)[-1:]
    speed = cells_of(page, "fp8", "KV format")["decode speed"]
    assert speed == tables.ratio_at(rows[1], rows[0], point) and bool(speed) is not widened
