"""What the report says of the machine's load, of the commit, and of verdicts that were given later."""

from datetime import UTC, datetime

import pytest

from bench.record.files import write
from bench.report import document
from bench.servers.result import Start
from bench.serving import compare
from bench.serving import section as summary
from bench.serving.result import ServingResult
from kernels_tests.bench.report.test_document import line_with, text_of
from kernels_tests.bench.samples import a_rate, a_record, a_result, a_row

WARNING = "- **Other work on the machine:** "


def loaded(before: float | None, during: float | None) -> ServingResult:
    """On two cores. during: at the second of two points; the first had less."""
    rates = [a_rate(0), a_rate(1024)]
    if during is not None:
        loads = (during / 2, during)
        rates = [one.model_copy(update={"load_average": load}) for one, load in zip(rates, loads, strict=True)]
    result = a_result(a_row(), a_row("fp8", "fp8", rates=rates))
    return result.model_copy(update={"provenance": result.provenance.model_copy(update={"load_average": before})})


@pytest.mark.parametrize(
    ("before", "during", "words", "warned"),
    [
        (None, None, "not recorded", False),
        (0.9, None, "0.9 before the run; 2 cores", False),
        (2.0, 4.0, "2.0 before the run, at most 4.0 while rates were measured; 2 cores", False),
        (2.1, 3.0, "2.1 before the run, at most 3.0 while rates were measured; 2 cores", True),
        (0.2, 4.1, "0.2 before the run, at most 4.1 while rates were measured; 2 cores", True),
        (None, 4.1, "at most 4.1 while rates were measured; 2 cores", True),
    ],
)
def test_the_load_is_told_and_other_work_is_warned_about(tmp_path, before, during, words, warned):
    text = text_of(loaded(before, during))
    assert line_with(text, "| load average") == f"| load average | {words} |"
    assert (f"{WARNING}load average {words}: " in text) is warned
    assert (WARNING in summary.summary_lines(loaded(before, during))) is warned
    write(loaded(before, during), tmp_path / "a.json")
    sides = [f"{tmp_path}/a.json:{name}" for name in ("baseline", "fp8")]
    assert compare.compare(*sides).count("Other work on the machine") == (2 if warned else 0)


@pytest.mark.parametrize(
    ("commit", "dirty", "words"),
    [
        ("0123abc", False, "0123abc"),
        ("0123abc", True, "0123abc with changes"),
        ("0123abc", None, "0123abc, git state not known"),
        (None, None, "not known"),
    ],
)
def test_an_unknown_git_state_is_not_a_clean_one(commit, dirty, words):
    result = a_result(a_row())
    source = result.provenance.model_copy(update={"git_commit": commit, "git_dirty": dirty})
    text = text_of(result.model_copy(update={"provenance": source}))
    assert line_with(text, "| commit ") == f"| commit | {words} |"


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (0.125, "pass (5 gates{})"),
        (0.09, "FAILED (5 of 5 gates{})"),
        (None, "not judged (this model has no thresholds{})"),
    ],
)
def test_a_verdict_that_was_given_later_says_so(bound, words):
    later = a_record(bound=bound, judged_at=datetime(2026, 7, 9, 8, 0, tzinfo=UTC))
    result = a_result(a_row(), a_row("fp8", "fp8", accuracy=later))
    said = words.format("; judged after the run, 2026-07-09")
    assert f"- **Accuracy of fp8:** {said}; over" in summary.summary_lines(result)
    assert said in line_with(text_of(result), "| Gates ")
    own = a_result(a_row(), a_row("fp8", "fp8", accuracy=a_record(bound=bound)))
    assert "judged after" not in text_of(own) and words.format("") in text_of(own)


def test_a_server_that_only_gave_log_probabilities_has_no_place_among_the_starts(tmp_path):
    row = a_row("fp8", "fp8")
    scored = Start(cache="scored", start_s=7654.0, first_token_s=765.0)
    texts, pictures = [], []
    for name, starts in (("with", [*row.starts, scored]), ("without", row.starts)):
        result = a_result(a_row(), row.model_copy(update={"starts": starts}))
        write(result, tmp_path / f"{name}.json")
        texts.append(document.write([tmp_path / f"{name}.json"], tmp_path / name).read_text())
        pictures.append((tmp_path / name / "plots" / f"{result.id}-start.png").read_bytes())
    assert texts[0] == texts[1] and pictures[0] == pictures[1]
    alone = a_result(a_row("fp8", "fp8", starts=[scored], rates=[]))
    assert "### Starts" not in text_of(alone) and "start" not in summary.messages_of(alone)
