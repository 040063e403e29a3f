"""The texts that are scored: where they come from and how they are cut."""

import itertools

import pytest

from bench import suite
from bench.accuracy.texts import Text, source_text, texts_of, tokenize
from bench.suite import Texts
from flashinfer_patches.errors import Problem
from vllm_launch import model, profile

MODEL = model.find(str(model.EMBEDDED))


def test_the_embedded_models_texts_reach_its_longest_context_and_do_not_overlap():
    settings = suite.load(None, MODEL.name).texts
    texts = texts_of(MODEL, settings)
    max_context = profile.load("baseline").model_settings(MODEL.name).vllm["max-model-len"]
    assert settings.tokens >= 4000
    longest = max(len(text.ids) for text in texts)
    assert longest < max_context <= longest + 16
    assert {text.start for text in texts if text.prefill} == {settings.shortest_prefill}
    stream = tokenize(MODEL.path, source_text(MODEL, "heldout"))
    assert 44_000 < len(stream) < 46_000 and stream.count(0) > 50, "records are kept apart by one special token"
    for group in settings.contexts:
        scored = [tuple(text.ids[text.start :]) for text in texts if text.start == group.context]
        assert len(set(scored)) == len(scored) and all(len(ids) == group.tokens for ids in scored)
        offsets = [offset_of(text, stream) for text in texts if text.start == group.context]
        assert all(b - a >= group.tokens for a, b in itertools.pairwise(offsets))


def offset_of(text: Text, stream: list[int]) -> int:
    return next(first for first in range(len(stream)) if stream[first : first + len(text.ids)] == text.ids)


def test_an_unknown_model_is_scored_on_the_book():
    settings = suite.load(None, "any").texts
    texts = texts_of(MODEL, settings)
    assert settings.source == "book" and settings.tokens >= 4000
    assert sum(len(text.ids) - text.start for text in texts) == settings.tokens


def test_a_source_that_is_too_short_is_a_problem():
    group = {"context": 44_000, "texts": 16, "tokens": 128}
    with pytest.raises(Problem, match="do not fit") as caught:
        texts_of(MODEL, Texts(source="heldout", contexts=[group]))
    assert caught.value.kind == "suite"


def test_a_model_without_heldout_text(model_folder):
    folder = model_folder()
    (folder / "tokenizer.json").write_bytes((model.EMBEDDED / "tokenizer.json").read_bytes())
    settings = Texts(source="heldout", contexts=[{"context": 8, "texts": 1, "tokens": 8}])
    with pytest.raises(Problem, match="held-out"):
        texts_of(model.find(str(folder)), settings)


@pytest.mark.parametrize("line", ['"abc"', "[1]", '{"text": 5}', "null", "abc", "{}"])
def test_held_out_text_of_an_unknown_form_is_a_problem(tmp_path, line):
    (tmp_path / "heldout.jsonl").write_text(f"{line}\n")
    with pytest.raises(Problem) as caught:
        source_text(MODEL.model_copy(update={"path": str(tmp_path)}), "heldout")
    assert caught.value.kind == "model" and "heldout.jsonl" in caught.value.message


def test_tokenize_adds_no_special_tokens(tmp_path):
    ids = tokenize(MODEL.path, "The capital of France is<|end|>")
    assert len(ids) > 3 and ids[-1] == 3 and ids[0] > 5
    with pytest.raises(Problem, match=r"tokenizer\.json"):
        tokenize(tmp_path, "text")
