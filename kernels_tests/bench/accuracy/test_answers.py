"""A server's answers: what is asked, and the file they are saved in."""

import pytest

from bench.accuracy import answers, forced
from bench.accuracy.forced import Scored
from bench.accuracy.judge import judge
from bench.accuracy.texts import texts_of
from bench.suite import Texts, Thresholds
from flashinfer_patches.errors import Problem
from vllm_launch import model

CONTEXTS = [
    {"context": 16, "texts": 3, "tokens": 4},
    {"context": 64, "texts": 2, "tokens": 4, "prefill": False},
]
TEXTS = texts_of(model.find(str(model.EMBEDDED)), Texts(source="heldout", contexts=CONTEXTS))


@pytest.fixture
def calls(monkeypatch):
    """Calls of score_all, by path and number of texts; it scores without a server."""
    calls = []

    def score_all(server, texts, path, *, progress):
        calls.append((path, len(texts)))
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


def collect(path, status=print):
    return answers.collect(None, "heldout", TEXTS, path, status)


def test_collect_scores_once_and_then_loads_its_file(tmp_path, calls):
    path, lines = tmp_path / "accuracy.json.gz", []
    first = collect(path, lines.append)
    assert calls == [("decode", 5), ("prefill", 3)] and lines[0] == "decode log-probabilities, 5 of 5 texts"
    assert [(text.context, text.prefill is None) for text in first.texts] == [(16, False)] * 3 + [(64, True)] * 2
    assert collect(path) == answers.read(path) == first and len(calls) == 2
    record = judge(first, first, Thresholds(decode={"mean_abs_delta": 0.1}), "baseline")
    assert record.passed is True and record.contexts[1].prefill is None and record.paths.texts == 3


def test_answers_at_some_contexts(tmp_path, calls):
    subset = collect(tmp_path / "accuracy.json.gz").at_contexts({64})
    assert [text.context for text in subset.texts] == [64, 64]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: data[:20] + b"\xff" * 40 + data[60:],
        lambda data: b"{}",
        lambda data: b"",
    ],
)
def test_a_damaged_file_names_itself(tmp_path, calls, damage):
    path = tmp_path / "accuracy.json.gz"
    collect(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Problem, match=r"accuracy\.json\.gz") as caught:
        answers.read(path)
    assert caught.value.kind == "file"
