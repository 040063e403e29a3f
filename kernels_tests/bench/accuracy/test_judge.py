"""Which gate each kind of damage trips."""

import json
import math
import random

import pytest

from bench.accuracy.answers import Answers, TextAnswer
from bench.accuracy.forced import Scored
from bench.accuracy.gate_words import failures
from bench.accuracy.judge import judge
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.accuracy.verdicts import holds
from bench.kinds import read as read_result
from bench.record.files import write
from bench.suite import Bounds, Thresholds
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_result, a_row
from vllm_launch.provenance import REPO

BOUNDS = {"mean_abs_delta": 0.15, "p99_abs_delta": 1.0, "kl": 0.02, "top1": 0.9, "perplexity_ratio": 1.05}
THRESHOLDS = Thresholds(
    decode=BOUNDS, decode_at_context=BOUNDS, prefill=BOUNDS, paths={"mean_abs_delta": 0.02}, sinks={}
)


def a_scored(chance: random.Random, tokens=64) -> Scored:
    top = []
    for _ in range(tokens):
        shares = sorted((chance.random() for _ in range(20)), reverse=True)
        top.append({token: math.log(0.9 * share / sum(shares)) for token, share in enumerate(shares)})
    return Scored(token_ids=[0] * tokens, logprobs=[likely[0] for likely in top], top=top)


def answers(contexts=(128, 1024), texts=8, prefill=True) -> Answers:
    chance = random.Random(7)
    entries = []
    for context in contexts:
        for _ in range(texts):
            scored = a_scored(chance)
            entries.append(TextAnswer(context=context, decode=scored, prefill=scored if prefill else None))
    return Answers(source="heldout", texts=entries)


def changed(original: Answers, change, path="decode", where=lambda text: True) -> Answers:
    texts = [
        text.model_copy(update={path: change(getattr(text, path))}) if where(text) else text for text in original.texts
    ]
    return original.model_copy(update={"texts": texts})


def shifted(nats, every=1):
    """Each `every`-th log-probability of the given tokens lower by `nats`, the tops untouched."""

    def change(scored: Scored) -> Scored:
        moved = [value - nats * (i % every == 0) for i, value in enumerate(scored.logprobs)]
        return scored.model_copy(update={"logprobs": moved})

    return change


def swapped_tops(every):
    """At each `every`-th position the two most likely tokens swapped."""

    def swap(top):
        return top | {0: top[1], 1: top[0]}

    def change(scored: Scored) -> Scored:
        return scored.model_copy(
            update={"top": [swap(top) if i % every == 0 else top for i, top in enumerate(scored.top)]}
        )

    return change


def flattened(scored: Scored) -> Scored:
    """The top tokens equally likely; none of their mass is lost."""
    return scored.model_copy(update={"top": [dict.fromkeys(top, math.log(0.9 / len(top))) for top in scored.top]})


def failed(record) -> set[str]:
    return {f"{gate.path} {gate.context or 'all'} {gate.figure}" for gate in record.failed_gates}


def test_a_server_like_its_reference_passes_every_gate():
    record = judge(answers(), answers(), THRESHOLDS, "baseline")
    assert record.passed is True and not failures(record)
    assert [entry.context for entry in record.contexts] == [128, 1024]
    assert record.decode.tokens == 2 * 8 * 64 and record.contexts[0].decode.tokens == 8 * 64
    assert len(record.gates) == 5 * (3 + 2)


@pytest.mark.parametrize(
    ("damage", "figure"),
    [
        (shifted(0.4), "mean_abs_delta"),
        (shifted(1.5, every=50), "p99_abs_delta"),
        (swapped_tops(5), "top1"),
        (shifted(0.1), "perplexity_ratio"),
        (shifted(-0.1), "perplexity_ratio"),
        (flattened, "kl"),
    ],
)
@pytest.mark.parametrize("path", ["decode", "prefill"])
def test_damage_fails_the_gate_that_is_there_for_it(damage, figure, path):
    record = judge(answers(), changed(answers(), damage, path), THRESHOLDS, "baseline")
    assert record.passed is False
    assert f"{path} all {figure}" in failed(record)
    undamaged = {"decode": "prefill", "prefill": "decode"}[path]
    assert not any(name.startswith(undamaged) for name in failed(record))


def test_damage_to_long_contexts_alone_fails_there():
    thresholds = THRESHOLDS.model_copy(update={"decode": THRESHOLDS.paths, "paths": Bounds()})
    long = changed(answers((128, 1024)), shifted(0.2), where=lambda text: text.context == 1024)
    record = judge(answers(), long, thresholds, "baseline")
    assert "decode 1024 mean_abs_delta" in failed(record) and "decode 128 mean_abs_delta" not in failed(record)


def test_half_of_the_texts_wrong_is_not_hidden_by_the_right_half():
    broken = answers()
    half = [id(text) for text in broken.texts[::2]]
    wrong = changed(broken, shifted(0.5), where=lambda text: id(text) in half)
    record = judge(answers(), wrong, THRESHOLDS, "baseline")
    assert {"decode all mean_abs_delta", "decode 128 mean_abs_delta"} <= failed(record)
    assert record.decode.mean_abs_delta.value == pytest.approx(0.25)


def test_a_decode_kernel_a_little_wrong_shows_against_its_own_prefill():
    little = changed(answers(), shifted(0.03))
    record = judge(answers(), little, THRESHOLDS, "baseline")
    assert failed(record) == {"paths all mean_abs_delta"}
    assert "decode against its own prefill" in failures(record)[0]


def test_damage_to_decode_and_prefill_alike_does_not_show_in_that():
    damaged = changed(changed(answers(), shifted(0.4)), shifted(0.4), "prefill")
    assert "paths all mean_abs_delta" not in failed(judge(answers(), damaged, THRESHOLDS, "baseline"))


def test_without_thresholds_nothing_is_judged():
    record = judge(answers(), changed(answers(), shifted(9.0)), Thresholds(), "baseline")
    assert record.passed is None and {gate.passed for gate in record.gates} == {None}
    assert record.decode.mean_abs_delta.value == pytest.approx(9.0)


def test_without_prefill_scores_decode_is_judged_alone():
    record = judge(answers(prefill=False), answers(prefill=False), THRESHOLDS, "baseline")
    assert record.prefill is None and record.paths is None and record.passed is True


def test_unlike_texts_and_broken_numbers_are_a_gate_problem():
    with pytest.raises(Problem, match="other texts") as caught:
        judge(answers(), answers((128,)), THRESHOLDS, "baseline")
    assert caught.value.kind == "gate"
    with pytest.raises(Problem, match="finite"):
        judge(answers(), changed(answers(), shifted(math.nan)), THRESHOLDS, "baseline")


@pytest.mark.parametrize(
    "cut",
    [
        {"logprobs": [-1.0] * 63},
        {"top": [{0: -1.0}] * 63},
        {"top": [{}] * 64},
    ],
)
def test_answers_of_unequal_length_are_a_gate_problem(cut):
    shorter = changed(answers(), lambda scored: scored.model_copy(update=cut))
    for pair in ((answers(), shorter), (shorter, answers())):
        with pytest.raises(Problem, match="as many of each") as caught:
            judge(*pair, THRESHOLDS, "baseline")
        assert caught.value.kind == "gate"


@pytest.mark.parametrize(
    ("figure", "value", "bound", "expected"),
    [
        ("kl", 0.1, 0.1, True),
        ("kl", 0.11, 0.1, False),
        ("top1", 0.9, 0.9, True),
        ("top1", 0.89, 0.9, False),
        ("perplexity_ratio", 1.01, 1.02, True),
        ("perplexity_ratio", 0.97, 1.02, False),
        ("perplexity_ratio", 1.03, 1.02, False),
        ("mean_abs_delta", math.nan, 0.1, False),
    ],
)
def test_bounds(figure, value, bound, expected):
    assert holds(figure, value, bound) is expected


def test_a_result_of_either_kind_is_read_as_its_kind(tmp_path):
    serving = a_result(a_row("fp8", "fp8", accuracy=judge(answers(), answers(), THRESHOLDS, "baseline")))
    row = {name: getattr(serving.rows[0], name) for name in AccuracyRow.model_fields}
    common = {name: getattr(serving, name) for name in ("id", "provenance", "model")}
    accuracy = AccuracyResult(**common, rows=[AccuracyRow(**row)])
    for result in (serving, accuracy):
        write(result, tmp_path / "result.json")
        assert read_result(tmp_path / "result.json") == result


def test_results_without_accuracy_records_are_still_read(tmp_path):
    old = json.loads(a_result(a_row()).model_dump_json())
    del old["rows"][0]["accuracy"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    paths = [tmp_path / "old.json", *(REPO / "results").glob("serving-*.json")]
    assert all(read_result(path).kind == "serving" for path in paths)
