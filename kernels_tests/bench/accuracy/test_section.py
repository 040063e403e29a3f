"""What a report states of accuracy: the record in a few words, failures, every figure, and the plot."""

from datetime import UTC, datetime

import pytest

from bench.accuracy import plot, section, tables
from bench.accuracy.gate_words import relative_words
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.accuracy.verdicts import RelativeGate
from bench.report import document
from bench.report import markdown as md
from bench.servers.result import FailedStep
from kernels_tests.bench.report.reading import error_lines, row
from kernels_tests.bench.report.reading import tables as tables_of
from kernels_tests.bench.samples import NOT_RUN, a_match, a_record, a_relative_gate, a_result, a_row, a_sink_check

LATER = datetime(2026, 7, 9, 8, 0, tzinfo=UTC)
MEAN = "mean |Δ log p|"
MISSED, UNDECIDED = a_relative_gate(0.1, 0.3), a_relative_gate(0.1, 0.3, noise=0.2)
NOT_JUDGED = RelativeGate(profile="fp8", status="not judged", reason="fp8 is not in this run", ratios=[])


def rows(**of_fp8):
    return [a_row(accuracy=a_record(0.006, 0.02)), a_row("fp8", "fp8", accuracy=a_record(**of_fp8))]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "pass, greedy 32/32 32/32 32/32"),
        ({"greedy": [a_match()]}, "pass, greedy 32/32"),
        ({"greedy": [a_match(), a_match(passed=False)]}, "FAILED, gates failed: 1, greedy 32/32 3/32"),
        ({"accuracy": a_record()}, f"pass, {MEAN} 0.100"),
        ({"accuracy": a_record(0.11)}, f"FAILED, gates failed: 1, {MEAN} 0.110"),
        ({"accuracy": a_record(), "greedy": [a_match(passed=False)]}, f"FAILED, gates failed: 1, {MEAN} 0.100"),
        ({"accuracy": a_record(bound=None)}, f"not judged, {MEAN} 0.100"),
        (
            {"accuracy": a_record(sinks=a_sink_check(status="FAILED"))},
            f"FAILED, gates failed: 1, sinks FAILED, {MEAN} 0.100",
        ),
        ({"accuracy": a_record(sinks=NOT_RUN), "greedy": []}, f"pass, sinks not run, {MEAN} 0.100"),
        ({"accuracy": a_record(judged_at=LATER)}, f"pass, {MEAN} 0.100, judged after the run, 2026-07-09"),
        ({"accuracy": a_record(0.006, 0.02, reference="fp8"), "greedy": []}, f"reference, {MEAN} 0.006"),
        ({"accuracy": a_record(0.3, reference="fp8"), "greedy": []}, f"FAILED, gates failed: 5, {MEAN} 0.300"),
        ({"accuracy": a_record(relative=UNDECIDED)}, f"undecided, {MEAN} 0.100"),
        ({"accuracy": a_record(relative=NOT_JUDGED)}, f"pass, over fp8 not judged, {MEAN} 0.100"),
        ({"accuracy": a_record(relative=MISSED)}, f"FAILED, gates failed: 1, {MEAN} 0.100"),
        ({"greedy": []}, "None"),
    ],
)
def test_the_record_in_a_few_words(changes, expected):
    profile = a_row("fp8", "fp8", **changes)
    assert str(tables.answers(profile, a_row())) == expected
    assert tables.first_cells(profile, a_row())[1].startswith("**FAILED") is expected.startswith("FAILED")


def glance_answers(*rows) -> list[str]:
    return [line[2] for line in section.section(an_accuracy_result(*rows)).glance]


def test_the_record_at_a_glance():
    judged_later, not_run = a_record(judged_at=LATER), a_record(sinks=NOT_RUN)
    profiles = [a_row(name, "fp8", accuracy=record) for name, record in (("a", judged_later), ("b", not_run))]
    assert glance_answers(a_row(), *profiles, a_row("c", "fp8"), a_row("d", "fp8", greedy=[a_match(passed=False)])) == [
        r"pass, mean \|Δ log p\| 0.100, judged after the run, 2026-07-09",
        r"pass, sinks not run, mean \|Δ log p\| 0.100",
        "pass, greedy 32/32 32/32 32/32",
        "**FAILED, gates failed: 1, greedy 3/32**",
    ]


@pytest.mark.parametrize("record", [a_record(), a_record(0.3), None])
def test_nothing_passes_against_a_reference_that_fails_its_own_gates(tmp_path, record):
    base, profile = a_row(accuracy=a_record(0.3)), a_row("fp8", "fp8", accuracy=record)
    assert tables.outcome(profile, base) == tables.outcome(base, base) == "FAILED"
    assert tables.answers(base, base).startswith("FAILED, gates failed: 5")
    of_kind = section.section(an_accuracy_result(base, profile))
    assert row("\n\n".join(of_kind.page), "fp8")["answers"] == f"**{tables.REFERENCE_FAILED}**"
    readme = tmp_path / "README.md"
    readme.write_text(f"{document.GLANCE_START}\n{document.GLANCE_END}\n")
    document.write_glance([of_kind], readme, tmp_path)
    (cells,) = tables_of(readme.read_text())[0]
    assert cells["answers"] == f"**{tables.REFERENCE_FAILED}**"


def test_a_failed_profile_that_is_not_the_reference_fails_alone():
    failed = a_row("fp8-skip-sliding", "fp8", accuracy=a_record(0.3))
    assert tables.outcome(a_row("fp8", "fp8"), failed) == "pass"


def test_a_sink_check_that_did_not_run_is_not_measured():
    rows = [a_row(), a_row("fp8", "fp8", accuracy=a_record(sinks=NOT_RUN))]
    assert section.section(an_accuracy_result(*rows)).not_measured == [f"fp8: sink check ({NOT_RUN.reason})"]


def test_every_failure_is_listed_once():
    failing = a_row(
        "fp8",
        "fp8",
        accuracy=a_record(0.11, sinks=a_sink_check(status="FAILED")),
        greedy=[a_match(), a_match(passed=False)],
        failures=[FailedStep(step="warm", message="the server ended\n| out of memory")],
    )
    (block,) = tables.failed([a_row(), failing])
    lines = block.splitlines()[2:]
    assert len(lines) == 4 and all("fp8" in line for line in lines)
    assert r"\| out of memory" in lines[0] and "greedy match 3 of 32 (4 distinct)" in lines[1]
    assert "3,960 tokens" in lines[2] and "0.132" in lines[2] and "0.125" in lines[2] and "sinks" in lines[3]
    assert tables.failed(rows()) == [] == tables.failed(rows(bound=None, delta=1.5))


def test_each_figure_stands_beside_its_interval_and_its_gate():
    text = "\n\n".join(tables.details(rows(delta=0.11)))
    assert row(text, "baseline", MEAN)[MEAN] == "0.006 (0.0054 to 0.0066), ≤ 0.02"
    figures = row(text, "fp8", MEAN)
    assert figures["tokens"] == "6,144" and figures[MEAN] == "0.11 (0.099 to 0.121), ≤ 0.125"
    assert figures["KL"] == "0.0077 (0.00693 to 0.00847)" and figures["perplexity ratio"].startswith("1.002 (")
    assert figures["top-1 agreement"] == "0.945 (0.934 to 0.956)"
    cells = [cells for table in tables_of(text) for cells in table if cells.get("profile") == "fp8"]
    assert [(each["context"], each["path"]) for each in cells] == [
        *(("all", "decode"), ("all", "prefill"), ("all", "decode against its own prefill")),
        *(("128", "decode"), ("1,024", "decode"), ("3,960", "decode")),
    ]
    assert cells[-1][MEAN] == "**FAILED: 0.132 (0.1188 to 0.1452), ≤ 0.125**"


def test_figures_of_a_broken_server_stay_short():
    record = a_record()
    huge = record.decode.perplexity_ratio.model_copy(update={"value": 1e300, "low": None, "high": None})
    decode = record.decode.model_copy(update={"perplexity_ratio": huge})
    text = "\n\n".join(tables.details([a_row(accuracy=record.model_copy(update={"decode": decode}))]))
    assert row(text, "baseline", MEAN)["perplexity ratio"] == "1e+300"


def test_sink_checks_are_in_the_details():
    text = "\n\n".join(tables.details([a_row(), a_row("fp8", "fp8", accuracy=a_record(sinks=NOT_RUN))]))
    assert r"- fp8: not run: transformers in FP32 needs 491.0 GiB \| 22.0 GiB free" in text
    assert r"- baseline: passed: mean \|Δ log p\| to FP32 true 0.090, zeroed 2.360" in text


def an_accuracy_result(*rows) -> AccuracyResult:
    content = a_result()
    answers = [AccuracyRow(**{name: getattr(row, name) for name in AccuracyRow.model_fields}) for row in rows]
    return AccuracyResult(id="a", provenance=content.provenance, model=content.model, rows=answers)


def test_an_accuracy_result_has_its_section_without_any_speed():
    of_kind = section.section(an_accuracy_result(*rows()))
    text = "\n\n".join([*of_kind.page, *of_kind.details])
    assert row(text, "fp8")["answers"] == tables.answers(rows()[1], rows()[0])
    assert row(text, "fp8")["KV capacity, tokens"] == "1,342,177 (2.00x)"
    assert row(text, "baseline")["KV capacity, tokens"] == "671,088"
    assert "tokens/s" not in text and "start" not in text and of_kind.not_measured == []
    ((_, profiles, answers, capacity, speed),) = of_kind.glance
    assert (profiles, capacity, speed) == ("fp8", "2.00x", "no speed")
    assert answers == r"pass, mean \|Δ log p\| 0.100"
    bare = section.section(an_accuracy_result(a_row(accuracy=None, resolved=None)))
    assert bare.draw is None and bare.not_measured == ["baseline: resolved settings, accuracy record"]


def test_the_capacity_ratio_names_a_reference_without_a_row():
    names = ("fp8", "fp8-skip-sliding")
    profiles = [a_row(name, "fp8", accuracy=a_record(), reference_kv_capacity_tokens=671_088) for name in names]
    of_kind = section.section(an_accuracy_result(*profiles))
    text = "\n\n".join(of_kind.page)
    for name in names:
        assert row(text, name)["KV capacity, tokens"] == "1,342,177 (2.00x baseline)"
    assert [line[3] for line in of_kind.glance] == ["2.00x baseline"]
    assert tables.capacity(profiles[0], a_row(), unit=" tokens") == "1,342,177 tokens (2.00x)"
    assert tables.capacity(a_row(resolved=None), a_row(), unit=" tokens") == "not known"


def test_a_setting_that_vllm_resolved_otherwise_is_listed():
    row = a_row("fp8", "fp8")
    assert tables.failed([a_row(), row, a_row("other", resolved=None)]) == []
    resolved = {"attention_backends": ["TORCH_SDPA"], "kv_cache_dtype": "auto"}
    (block,) = tables.failed([row.model_copy(update={"resolved": row.resolved.model_copy(update=resolved)})])
    assert block.splitlines()[2:] == [
        "- **fp8**, attention backend: expected CPU_ATTN, got TORCH_SDPA",
        "- **fp8**, KV cache dtype: expected fp8_e4m3, got bfloat16",
    ]


def test_a_decoder_that_is_not_stock_stands_beside_the_profile():
    fp8 = a_row("fp8", "fp8", decoder="lowp", accuracy=a_record())
    fp8 = fp8.model_copy(update={"resolved": fp8.resolved.model_copy(update={"decoder": "lowp"})})
    part = section.section(an_accuracy_result(a_row(), fp8, a_row("server", requested=None, decoder=None)))
    text = "\n".join(part.page)
    assert "| fp8 (decoder lowp) |" in text and "| baseline |" in text and "| server |" in text
    assert part.glance[0][1] == "fp8 (decoder lowp)" and tables.failed([fp8]) == []
    stock = fp8.model_copy(update={"resolved": fp8.resolved.model_copy(update={"decoder": "stock"})})
    assert "decoder: expected lowp, got stock" in tables.failed([stock])[0]


def drawn(profiles, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append(figure))
    plot.accuracy_plot("title", profiles, tmp_path / "a.png")
    (panel,) = figures[0].axes
    return panel


def test_the_plot_shows_each_record_with_its_interval_and_gate(monkeypatch, tmp_path):
    profiles = [*rows(), a_row("fp8-skip-sliding", "fp8")]
    panel = drawn(profiles, monkeypatch, tmp_path)
    series = error_lines(panel)
    assert list(series) == [f"{each.profile} ({tables.answers(each, profiles[0])})" for each in profiles[:2]]
    assert series[list(series)[1]] == [
        pytest.approx((context, mean, 0.9 * mean, 1.1 * mean))
        for context, mean in ((128, 0.1), (1024, 0.11), (3960, 0.12))
    ]
    gates = [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--"]
    assert gates == [0.02, 0.125] and panel.get_ylim()[1] > 0.132
    assert panel.get_xlim()[0] < 128 and panel.get_xlim()[1] > 3960


def test_the_plot_of_a_single_context_without_gate_and_intervals(monkeypatch, tmp_path):
    record = a_record(contexts=(128,), bound=None)
    mean = record.contexts[0].decode.mean_abs_delta.model_copy(update={"low": None, "high": None})
    decode = record.contexts[0].decode.model_copy(update={"mean_abs_delta": mean})
    contexts = [record.contexts[0].model_copy(update={"decode": decode})]
    panel = drawn(
        [a_row("fp8", "fp8", accuracy=record.model_copy(update={"contexts": contexts}))], monkeypatch, tmp_path
    )
    assert list(error_lines(panel).values()) == [[(128, 0.1, 0.1, 0.1)]]


def test_relative_gates_are_in_the_details_and_their_failures_are_listed():
    gates = {"a": MISSED, "b": UNDECIDED}
    profiles = [a_row(), *(a_row(name, "fp8", accuracy=a_record(relative=gate)) for name, gate in gates.items())]
    assert len(tables.failed(profiles)[0].splitlines()) == 3, "a title and one failure"
    text = "\n\n".join(tables.details(profiles))
    for name, gate in gates.items():
        assert f"- {name}: {md.text(relative_words(gate))}" in text
    unjudged = a_row("c", "fp8", accuracy=a_record(relative=NOT_JUDGED))
    assert tables.missing(unjudged, []) == [f"c: gate over fp8 ({NOT_JUDGED.reason})"]
