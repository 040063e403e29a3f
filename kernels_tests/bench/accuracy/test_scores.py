"""What is scored, and which gate each kind of damage trips."""

import itertools
import json
import math
import random

import pytest

from bench.accuracy import forced
from bench.accuracy import scores as accuracy
from bench.accuracy.forced import Scored, Text
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.accuracy.scores import Answers, AtText
from bench.kinds import read as read_result
from bench.record.files import write
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_result, a_row
from vllm_launch import model, profile
from vllm_launch.profile import AccuracyTexts, Thresholds
from vllm_launch.provenance import REPO

MODEL = model.find(str(model.EMBEDDED))
BOUNDS = {"mean_abs_delta": 0.15, "p99_abs_delta": 1.0, "kl": 0.02, "top1": 0.9, "perplexity_ratio": 1.05}
THRESHOLDS = Thresholds(
    decode=BOUNDS, decode_at_context=BOUNDS, prefill=BOUNDS, paths={"mean_abs_delta": 0.02}, sinks={}
)


def a_scored(chance: random.Random, tokens=64) -> Scored:
    top = []
    for _ in range(tokens):
        shares = sorted((chance.random() for _ in range(20)), reverse=True)
        top.append({token: math.log(0.9 * share / sum(shares)) for token, share in enumerate(shares)})
    return Scored(token_ids=[0] * tokens, logprobs=[one[0] for one in top], top=top)


def answers(contexts=(128, 1024), texts=8, prefill=True) -> Answers:
    chance = random.Random(7)
    at = []
    for context in contexts:
        for _ in range(texts):
            one = a_scored(chance)
            at.append(AtText(context=context, decode=one, prefill=one if prefill else None))
    return Answers(source="heldout", at=at)


def changed(one: Answers, change, path="decode", where=lambda at: True) -> Answers:
    at = [at.model_copy(update={path: change(getattr(at, path))}) if where(at) else at for at in one.at]
    return one.model_copy(update={"at": at})


def shifted(by, every=1):
    """Each `every`-th log-probability of the given tokens lower by `by` nats, the tops untouched."""

    def change(scored: Scored) -> Scored:
        moved = [value - by * (place % every == 0) for place, value in enumerate(scored.logprobs)]
        return scored.model_copy(update={"logprobs": moved})

    return change


def other_tops(every):
    """At each `every`-th position the best two tokens swapped."""

    def swap(top):
        return top | {0: top[1], 1: top[0]}

    def change(scored: Scored) -> Scored:
        return scored.model_copy(
            update={"top": [swap(top) if place % every == 0 else top for place, top in enumerate(scored.top)]}
        )

    return change


def flattened(scored: Scored) -> Scored:
    """The best tokens equally likely; none is likelier than the best, none of their mass is lost."""
    return scored.model_copy(update={"top": [dict.fromkeys(top, math.log(0.9 / len(top))) for top in scored.top]})


def failed(record) -> set[str]:
    return {f"{gate.path} {gate.context or 'all'} {gate.figure}" for gate in record.failed_gates}


def test_a_server_like_its_reference_passes_every_gate():
    record = accuracy.judge(answers(), answers(), THRESHOLDS, "baseline")
    assert record.passed is True and not accuracy.failures(record)
    assert [one.context for one in record.contexts] == [128, 1024]
    assert record.decode.tokens == 2 * 8 * 64 and record.contexts[0].decode.tokens == 8 * 64
    assert len(record.gates) == 5 * (3 + 2)


@pytest.mark.parametrize(
    ("damage", "figure"),
    [
        (shifted(0.4), "mean_abs_delta"),
        (shifted(1.5, every=50), "p99_abs_delta"),
        (other_tops(5), "top1"),
        (shifted(0.1), "perplexity_ratio"),
        (shifted(-0.1), "perplexity_ratio"),
        (flattened, "kl"),
    ],
)
@pytest.mark.parametrize("path", ["decode", "prefill"])
def test_damage_fails_the_gate_that_is_there_for_it(damage, figure, path):
    record = accuracy.judge(answers(), changed(answers(), damage, path), THRESHOLDS, "baseline")
    assert record.passed is False
    assert f"{path} all {figure}" in failed(record)
    other = {"decode": "prefill", "prefill": "decode"}[path]
    assert not any(name.startswith(other) for name in failed(record))


def test_damage_to_long_contexts_alone_fails_there():
    thresholds = THRESHOLDS.model_copy(update={"decode": THRESHOLDS.paths, "paths": profile.Bounds()})
    long = changed(answers((128, 1024)), shifted(0.2), where=lambda at: at.context == 1024)
    record = accuracy.judge(answers(), long, thresholds, "baseline")
    assert "decode 1024 mean_abs_delta" in failed(record) and "decode 128 mean_abs_delta" not in failed(record)


def test_half_of_the_texts_wrong_is_not_hidden_by_the_other_half():
    broken = answers()
    half = [id(at) for at in broken.at[::2]]
    wrong = changed(broken, shifted(0.5), where=lambda at: id(at) in half)
    record = accuracy.judge(answers(), wrong, THRESHOLDS, "baseline")
    assert {"decode all mean_abs_delta", "decode 128 mean_abs_delta"} <= failed(record)
    assert record.decode.mean_abs_delta.value == pytest.approx(0.25)


def test_a_decode_kernel_a_little_wrong_shows_against_its_own_prefill():
    little = changed(answers(), shifted(0.03))
    record = accuracy.judge(answers(), little, THRESHOLDS, "baseline")
    assert failed(record) == {"paths all mean_abs_delta"}
    assert "decode against its own prefill" in accuracy.failures(record)[0]


def test_damage_to_decode_and_prefill_alike_does_not_show_in_that():
    both = changed(changed(answers(), shifted(0.4)), shifted(0.4), "prefill")
    assert "paths all mean_abs_delta" not in failed(accuracy.judge(answers(), both, THRESHOLDS, "baseline"))


def test_without_thresholds_nothing_is_judged():
    record = accuracy.judge(answers(), changed(answers(), shifted(9.0)), Thresholds(), "baseline")
    assert record.passed is None and {gate.passed for gate in record.gates} == {None}
    assert record.decode.mean_abs_delta.value == pytest.approx(9.0)


def test_without_prefill_scores_decode_is_judged_alone():
    record = accuracy.judge(answers(prefill=False), answers(prefill=False), THRESHOLDS, "baseline")
    assert record.prefill is None and record.paths is None and record.passed is True


def test_other_texts_and_broken_numbers_are_a_gate_problem():
    with pytest.raises(Problem, match="other texts") as caught:
        accuracy.judge(answers(), answers((128,)), THRESHOLDS, "baseline")
    assert caught.value.kind == "gate"
    with pytest.raises(Problem, match="finite"):
        accuracy.judge(answers(), changed(answers(), shifted(math.nan)), THRESHOLDS, "baseline")


@pytest.mark.parametrize(
    "cut",
    [
        {"logprobs": [-1.0] * 63},
        {"top": [{0: -1.0}] * 63},
        {"top": [{}] * 64},
    ],
)
def test_answers_of_unequal_length_are_a_gate_problem(cut):
    short = changed(answers(), lambda scored: scored.model_copy(update=cut))
    for pair in ((answers(), short), (short, answers())):
        with pytest.raises(Problem, match="as many of each") as caught:
            accuracy.judge(*pair, THRESHOLDS, "baseline")
        assert caught.value.kind == "gate"


@pytest.mark.parametrize(
    ("figure", "value", "bound", "kept"),
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
def test_bounds(figure, value, bound, kept):
    assert accuracy.holds(figure, value, bound) is kept


def test_the_embedded_models_texts_reach_its_longest_context_and_do_not_overlap():
    one = profile.load("baseline")
    settings = one.model_settings(MODEL.name)
    found = accuracy.texts(MODEL, settings.accuracy)
    longest = settings.vllm["max-model-len"]
    assert settings.accuracy.tokens >= 4000
    assert max(len(text.ids) for text in found) < longest <= max(len(text.ids) for text in found) + 16
    stream = forced.tokenize(MODEL.path, accuracy._source(MODEL, "heldout"))
    assert 44_000 < len(stream) < 46_000 and stream.count(0) > 50, "records are kept apart by one special token"
    for context in {text.start for text in found}:
        scored = [tuple(text.ids[text.start :]) for text in found if text.start == context]
        tokens = next(place.tokens for place in settings.accuracy.at if place.context == context)
        assert len(set(scored)) == len(scored) and all(len(ids) == tokens for ids in scored)
        places = [_place(stream, text) for text in found if text.start == context]
        assert all(b - a >= tokens for a, b in itertools.pairwise(places))


def _place(stream: list[int], text: Text) -> int:
    return next(first for first in range(len(stream)) if stream[first : first + len(text.ids)] == text.ids)


def test_any_other_model_is_scored_on_the_book():
    settings = profile.load("fp8").model_settings("whatever").accuracy
    found = accuracy.texts(MODEL, settings)
    assert settings.source == "book" and settings.tokens >= 4000
    assert sum(len(text.ids) - text.start for text in found) == settings.tokens


@pytest.mark.parametrize(("place", "kind"), [({"context": 44_000, "texts": 16, "tokens": 128}, "profile")])
def test_more_text_than_there_is(place, kind):
    with pytest.raises(Problem, match="do not fit") as caught:
        accuracy.texts(MODEL, AccuracyTexts(source="heldout", at=[place]))
    assert caught.value.kind == kind


def test_a_model_without_heldout_text(model_folder):
    folder = model_folder()
    (folder / "tokenizer.json").write_bytes((model.EMBEDDED / "tokenizer.json").read_bytes())
    settings = AccuracyTexts(source="heldout", at=[{"context": 8, "texts": 1, "tokens": 8}])
    with pytest.raises(Problem, match="held-out"):
        accuracy.texts(model.find(str(folder)), settings)


class FakeServer:
    """Stands where collect takes a server; it only passes it on."""

    class plan:
        model = MODEL


@pytest.fixture
def scores(monkeypatch):
    """Scores without a server: calls of score_all, by path and number of texts."""
    calls = []

    def score_all(server, texts, by, *, progress):
        calls.append((by, len(texts)))
        progress(len(texts), len(texts))
        return [
            Scored(
                token_ids=text.ids[text.start :],
                logprobs=[-1.0 - token / 7 for token in text.ids[text.start :]],
                top=[{token: -1.0 - token / 7} for token in text.ids[text.start :]],
            )
            for text in texts
        ]

    monkeypatch.setattr(forced, "score_all", score_all)
    return calls


SETTINGS = AccuracyTexts(
    source="heldout",
    at=[
        {"context": 16, "texts": 3, "tokens": 4},
        {"context": 64, "texts": 2, "tokens": 4, "prefill": False},
    ],
)


def test_collect_scores_once_and_reads_its_file_again(tmp_path, scores):
    path, said = tmp_path / "accuracy.json.gz", []
    first = accuracy.collect(FakeServer(), SETTINGS, path, said.append)
    assert scores == [("decode", 5), ("prefill", 3)] and said[0] == "decode log-probabilities, 5 of 5 texts"
    assert [(at.context, at.prefill is None) for at in first.at] == [(16, False)] * 3 + [(64, True)] * 2
    assert accuracy.collect(FakeServer(), SETTINGS, path, said.append) == first and len(scores) == 2
    record = accuracy.judge(first, accuracy.read(path), THRESHOLDS, "baseline")
    assert record.passed is True and record.contexts[1].prefill is None and record.paths.texts == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"{}", lambda data: b""])
def test_a_damaged_file_names_itself(tmp_path, scores, damage):
    path = tmp_path / "accuracy.json.gz"
    accuracy.collect(FakeServer(), SETTINGS, path, print)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Problem, match=r"accuracy\.json\.gz") as caught:
        accuracy.read(path)
    assert caught.value.kind == "file"


def test_a_result_of_either_kind_is_read_as_its_kind(tmp_path):
    serving = a_result(a_row("fp8", "fp8", accuracy=accuracy.judge(answers(), answers(), THRESHOLDS, "baseline")))
    row = {name: getattr(serving.rows[0], name) for name in AccuracyRow.model_fields}
    common = {name: getattr(serving, name) for name in ("id", "provenance", "model")}
    alone = AccuracyResult(**common, rows=[AccuracyRow(**row)])
    for one in (serving, alone):
        write(one, tmp_path / "result.json")
        assert read_result(tmp_path / "result.json") == one


def test_results_from_before_there_were_records_are_still_read(tmp_path):
    old = json.loads(a_result(a_row()).model_dump_json())
    del old["rows"][0]["accuracy"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    kept = [tmp_path / "old.json", *(REPO / "results").glob("serving-*.json")]
    assert all(read_result(path).kind == "serving" for path in kept)


@pytest.mark.parametrize("line", ['"abc"', "[1]", '{"text": 5}', "null", "abc", "{}"])
def test_held_out_text_of_another_form_is_one_problem(tmp_path, line):
    (tmp_path / "heldout.jsonl").write_text(f"{line}\n")
    with pytest.raises(Problem) as caught:
        accuracy._source(MODEL.model_copy(update={"path": str(tmp_path)}), "heldout")
    assert caught.value.kind == "model" and "heldout.jsonl" in caught.value.message


def test_damaged_answers_are_one_problem(tmp_path):
    path = tmp_path / "scores.json.gz"
    accuracy._write(answers(texts=1), path)
    packed = bytearray(path.read_bytes())
    packed[20:60] = b"\xff" * 40
    path.write_bytes(packed)
    with pytest.raises(Problem) as caught:
        accuracy.read(path)
    assert caught.value.kind == "file" and str(path) in caught.value.message
