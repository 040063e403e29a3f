"""Relative gates: a profile's distance from the reference over another profile's, with the reference's noise."""

import pytest

from bench.accuracy import forced, run, tables
from bench.accuracy.answers import read
from bench.accuracy.forced import Scored
from bench.accuracy.gate_words import failures, relative_words
from bench.accuracy.judge import judge, judge_relative
from bench.accuracy.run import REPEATED, SCORES
from bench.accuracy.verdicts import AccuracyRecord, Ratio, RelativeGate, ratio_status, relative_status
from bench.kinds import sections
from bench.suite import RelativeBounds, Thresholds
from flashinfer_patches.errors import GATE, Problem
from kernels_tests.bench.accuracy.test_judge import answers, changed, shifted
from kernels_tests.bench.conftest import rows

NO_BOUNDS = Thresholds()
BOUNDS = RelativeBounds(profile="fp8", mean_abs_delta=0.25)


def gate(mine: float, yardstick: float, noise: float, bounds=BOUNDS) -> RelativeGate:
    """The gate of a profile `mine` nats off, where profile fp8 is `yardstick` nats off, and the reference `noise`."""
    reference = answers((128,))
    return judge_relative(bounds, reference, *(changed(reference, shifted(nats)) for nats in (noise, yardstick, mine)))


@pytest.mark.parametrize(
    ("mine", "yardstick", "noise", "expected"),
    [
        (0.020, 0.1, 0.005, "passed"),
        (0.030, 0.1, 0.005, "FAILED"),
        (0.400, 0.1, 0.005, "FAILED"),
        (0.020, 0.1, 0.011, "undecided"),
        (0.400, 0.1, 0.011, "undecided"),
        (0.0, 0.0, 0.0, "undecided"),
    ],
)
def test_figures_that_pass_fail_and_are_undecided(mine, yardstick, noise, expected):
    relative = gate(mine, yardstick, noise)
    (ratio,) = relative.ratios
    assert (relative.profile, relative.status, ratio.status) == ("fp8", expected, expected)
    assert (ratio.value, ratio.yardstick, ratio.noise) == pytest.approx((mine, yardstick, noise), abs=1e-12)
    assert (ratio.figure, ratio.bound, ratio.max_noise) == ("mean_abs_delta", 0.25, 0.1)


@pytest.mark.parametrize(
    ("value", "yardstick", "noise", "expected"),
    [
        (25.0, 100.0, 9.9, "passed"),
        (25.1, 100.0, 9.9, "FAILED"),
        (25.0, 100.0, 10.0, "undecided"),
        (0.0, 0.0, 0.0, "undecided"),
        (-1e-9, 100.0, -1e-9, "passed"),
    ],
)
def test_the_edges_of_a_ratio(value, yardstick, noise, expected):
    assert ratio_status(value, yardstick, noise, 0.25, 0.1) == expected


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["FAILED", "passed"], "passed"),
        (["undecided", "passed"], "passed"),
        (["undecided", "FAILED"], "FAILED"),
        (["undecided", "undecided"], "undecided"),
        ([], "undecided"),
    ],
)
def test_a_single_ratio_within_its_bound_passes(statuses, expected):
    assert relative_status(statuses) == expected


def test_answers_of_other_texts_and_no_decode_are_not_judged():
    reference, first = answers((128, 1024)), answers((128,))
    relative = judge_relative(BOUNDS, reference, first, reference, reference)
    assert relative.status == "not judged" and relative.reason and not relative.ratios
    no_decode = changed(first, lambda scored: None)
    assert judge_relative(BOUNDS, *[no_decode] * 4).status == "not judged"


def judged(relative: RelativeGate, nats: float, thresholds=NO_BOUNDS) -> AccuracyRecord:
    reference = answers((128,))
    return judge(reference, changed(reference, shifted(nats)), thresholds, "baseline", relative=relative)


def test_the_verdict_of_a_record_counts_its_relative_gate():
    bounds = Thresholds(decode={"mean_abs_delta": 9})
    for noise, nats, expected in ((0.001, 0.02, True), (0.001, 0.03, False), (0.02, 0.02, None)):
        record = judged(gate(nats, 0.1, noise), nats, bounds)
        assert record.passed is expected and bool(failures(record)) is (expected is False)
    assert judged(gate(0.02, 0.1, 0.001), 0.02).passed is True, "no other gate is needed"
    not_scored = RelativeGate(profile="fp8", status="not judged", reason="fp8 is not in this run", ratios=[])
    assert judged(not_scored, 0.02, bounds).passed is True and judged(not_scored, 0.02).passed is None


@pytest.mark.parametrize("field", ["value", "yardstick", "noise", "bound", "max_noise", "status"])
def test_a_ratio_that_its_figures_contradict_is_refused(field):
    (ratio,) = gate(0.020, 0.1, 0.005).ratios
    worse = {"value": 0.5, "yardstick": 0.01, "noise": 0.05, "bound": 0.01, "max_noise": 0.01, "status": "FAILED"}
    with pytest.raises(ValueError, match="makes it"):
        Ratio(**ratio.model_dump() | {field: worse[field]})


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "FAILED"},
        {"status": "not judged"},
        {"reason": "why"},
        {"reason": "why", "status": "not judged"},
        {"ratios": []},
        {"ratios": [], "reason": "why"},
    ],
)
def test_a_relative_gate_that_its_ratios_contradict_is_refused(changes):
    with pytest.raises(ValueError, match="ratios"):
        RelativeGate(**gate(0.020, 0.1, 0.005).model_dump() | changes)


def test_a_ratio_of_another_record_is_refused():
    with pytest.raises(ValueError, match="the record"):
        judged(gate(0.020, 0.1, 0.005), 0.021)


def test_a_record_without_the_field_is_read():
    record = judged(gate(0.020, 0.1, 0.005), 0.02)
    assert AccuracyRecord.model_validate_json(record.model_dump_json()) == record
    old = AccuracyRecord.model_validate(record.model_dump(exclude={"relative"}))
    assert old.relative is None and old.decode == record.decode


def test_the_gate_in_words():
    assert relative_words(gate(0.020, 0.1, 0.005)) == (
        "decode over fp8, passed: mean |Δ log p| 0.2x, at most 0.25x (noise 0.05x)"
    )
    assert relative_words(gate(0.020, 0.1, 0.02)).endswith("at most 0.25x (noise 0.2x, undecided from 0.1x)")
    assert relative_words(gate(0.0, 0.0, 0.0)).endswith("-, at most 0.25x (noise -, undecided from 0.1x)")


SUITE = """extends: default
grid: {prompt: [64], output: [2], runs: 1}
texts: {source: heldout, contexts: [{context: 16, texts: 8, tokens: 4}, {context: 64, texts: 8, tokens: 4}]}
thresholds: {mine: {relative: {profile: fp8, kl: BOUND, mean_abs_delta: BOUND}}}
"""


class Scores(dict):
    """Nats by which each profile is off in decode, `noise`: the reference's second answers. calls: texts asked for."""

    def __init__(self):
        super().__init__({"baseline": 0.0, "fp8": 0.1, "other": 0.4, "mine": 0.02, "noise": 0.001})
        self.calls = []

    def contexts(self, name: str, path="decode") -> list[list[int]]:
        """The contexts of the texts of each call, in the order in which they were sent."""
        return [contexts for called, of_path, contexts in self.calls if (called, of_path) == (name, path)]


@pytest.fixture
def scores(servers, monkeypatch):
    scores = Scores()

    def score_all(endpoint, texts, path, *, progress):
        name = servers.plans[-1].profile
        repeats = name == "baseline" and bool(scores.contexts(name, path))
        scores.calls.append((name, path, [text.start for text in texts]))
        nats = scores["noise" if repeats else name]
        return [
            Scored(token_ids=ids, logprobs=[-1.0 - nats] * len(ids), top=[{1: -1.0 - nats, 2: -1.0 + nats}] * len(ids))
            for ids in (text.ids[text.start :] for text in texts)
        ]

    monkeypatch.setattr(forced, "score_all", score_all)
    return scores


@pytest.fixture
def measure(bench, small, scores, tmp_path):
    """A function that runs a bench on profiles and returns the record of `mine`, which a relative gate judges."""
    for name in ("mine", "other"):
        small(name=name)
    suite = tmp_path / "suite.yaml"

    def measured(*profiles, kind="accuracy", bound=0.25, exit_code=0):
        suite.write_text(SUITE.replace("BOUND", str(bound)))
        paths = [str(tmp_path / f"{name}.yaml") if name in ("mine", "other") else name for name in profiles]
        words = [*paths, "--suite", str(suite)] if profiles else ["--resume", str(tmp_path / "run")]
        invocation = bench(kind, *words, exit_code=exit_code)
        record = rows(tmp_path / "run")["mine"].accuracy
        if record and not exit_code:
            assert f"mine: {relative_words(record.relative)}" in invocation.stderr
        return record

    return measured


@pytest.mark.parametrize("kind", ["accuracy", "serving"])
def test_a_run_judges_a_profile_over_that_of_its_bounds(measure, scores, kind):
    relative = measure("other", "mine", "fp8", kind=kind).relative
    assert relative.status == "passed"
    mean = next(ratio for ratio in relative.ratios if ratio.figure == "mean_abs_delta")
    assert (mean.value, mean.yardstick, mean.noise) == pytest.approx((0.02, 0.1, 0.001))
    first, repeated = scores.contexts("baseline")
    assert first == [16] * 8 + [64] * 8 and repeated == first[::-1], "every text again, in another order"
    assert [len(scores.contexts(name)) for name in ("fp8", "mine", "other")] == [1, 1, 1]


def test_the_repeated_answers_are_in_the_order_of_the_texts(measure, tmp_path):
    measure("mine", "fp8")
    first, repeated = (read(tmp_path / "run" / "baseline" / name) for name in (SCORES, REPEATED))
    assert [text.decode.token_ids for text in first.texts] == [text.decode.token_ids for text in repeated.texts]
    assert [text.context for text in repeated.texts] == [16] * 8 + [64] * 8


def test_a_profile_too_far_off_fails_the_run(measure, scores):
    scores["mine"] = 0.06
    assert measure("mine", "fp8", exit_code=GATE).relative.status == "FAILED"


def test_a_profile_inside_the_noise_is_undecided(measure, scores, tmp_path):
    scores["noise"], scores["mine"] = 0.05, 0.4
    assert measure("mine", "fp8").relative.status == "undecided"
    profiles = rows(tmp_path / "run")
    assert tables.outcome(profiles["mine"], profiles["fp8"]) == "undecided"


@pytest.mark.parametrize(("kind", "repeated"), [("accuracy", 16), ("serving", 8)])
def test_without_the_named_profile_nothing_is_judged(measure, scores, tmp_path, kind, repeated):
    relative = measure("baseline", "mine", "other", kind=kind).relative
    assert (relative.status, relative.reason) == ("not judged", "fp8 is not in this run")
    assert len(scores.contexts("baseline")[1]) == repeated, "a serving run without the gate repeats the first context"
    (section,) = sections([tmp_path / "run"])
    assert any(relative.reason in line for line in section.not_measured)


def test_unlike_decoders_are_not_compared(measure, monkeypatch):
    settings = run.row_settings
    changes = {"mine": {"decoder": "lowp"}}
    monkeypatch.setattr(run, "row_settings", lambda entry: settings(entry) | changes.get(entry.name, {}))
    relative = measure("mine", "fp8").relative
    assert (relative.status, relative.reason) == (
        "not judged",
        "decoders differ: baseline stock, fp8 stock, mine lowp",
    )


def test_a_run_that_is_resumed_is_judged_once_the_named_profile_is_scored(measure, servers):
    servers.fail["fp8 scored"] = Problem("server", "it ended", "see the log")
    assert measure("mine", "fp8", exit_code=1).relative.status == "not judged"
    servers.fail.clear()
    record = measure()
    assert record.relative.status == "passed" and record.judged_at is None


def test_saved_scores_are_judged_again_by_a_new_bound(measure):
    assert measure("mine", "fp8").relative.status == "passed"
    record = measure(bound=0.01, exit_code=GATE)
    assert record.relative.status == "FAILED" and record.judged_at


def test_a_gate_over_an_unknown_profile_is_refused(bench, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE.replace("fp8", "fp9").replace("BOUND", "1").replace("mine", "fp8"))
    assert "fp9" in bench("accuracy", "fp8", "--suite", str(suite), exit_code=2).stderr
