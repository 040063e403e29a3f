"""Forced decoding and prefill on real vLLM servers, in BF16, in FP8 and with each mutant of it."""

import os
from pathlib import Path

import pytest

from bench import suite
from bench.accuracy import forced
from bench.accuracy.answers import Answers, TextAnswer
from bench.accuracy.judge import judge
from bench.accuracy.texts import Text, texts_of
from bench.servers.client import endpoint_of
from flashinfer_patches.errors import Problem
from kernels_tests.processes import free_port
from vllm_launch import plan, profile, server, software
from vllm_launch.model import EMBEDDED, find

pytestmark = [pytest.mark.server, pytest.mark.long]
ROOT = Path(__file__).parents[3]
SUITE = suite.load(None, "tiny_gpt_oss")
CONTEXT = 128  # the shortest of the suite's
TOKENS = 96  # of a short text


def serve(name, folder, **environment):
    """A server of a profile with the token forcer, as a context manager."""
    extra = forced.arguments(*software.vllm_build())
    planned = plan.make(profile.load(name), port=free_port(), cache_root=folder, model_path=str(EMBEDDED), extra=extra)
    planned = planned.model_copy(update={"environment": planned.environment | environment})
    return server.running(planned, folder, show_status=lambda line: None)


def heldout_texts():
    """`long`: the suite's texts of its shortest context; `short`: the ends of some, after a prompt of 2."""
    longs = [text for text in texts_of(find(str(EMBEDDED)), SUITE.texts) if text.start == CONTEXT]
    return {"long": longs, "short": [Text(ids=text.ids[:TOKENS], start=2) for text in longs[:4]]}


def distance(a, b):
    """Mean |Δ log p|, nats."""
    texts = zip(a, b, strict=True)
    deltas = [abs(x - y) for text_a, text_b in texts for x, y in zip(text_a.logprobs, text_b.logprobs, strict=True)]
    return sum(deltas) / len(deltas)


def score(endpoint, texts):
    return {
        "decode": forced.score_all(endpoint, texts["long"], "decode"),
        "prefill": forced.score_all(endpoint, texts["long"], "prefill"),
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory, fp8_cache):
    """Scores by server (`bf16`, `fp8`, or FP8 with a mutant), then by path; `short` is decode with no prefill."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder, texts = tmp_path_factory.mktemp("forced"), heldout_texts()
    with serve("baseline", folder) as running:
        endpoint = endpoint_of(running)
        bf16 = score(endpoint, texts)
        with pytest.raises(Problem, match=r"HTTP 400.*out-of-vocab") as refused:
            forced.decode(endpoint, [7, 8], [9, 4096])
        assert refused.value.kind == "requests"
        with pytest.raises(Problem, match=r"HTTP 400.*force_ids: expected max_tokens 1"):
            forced._choice(endpoint, {"prompt": [7], "vllm_xargs": {"force_ids": [8]}}, None)
        special = forced.decode(endpoint, [7, 8], [4, 0, 5, 4095])
        assert special.token_ids == [4, 0, 5, 4095], "the end of text does not end the request"
    return {"bf16": bf16} | (scored_in_fp8(folder, texts, bf16) if fp8_cache else {})


def scored_in_fp8(folder, texts, bf16):
    """Scores by server, of FP8 and of FP8 with each mutant, beside BF16's for the table that is printed."""
    from kernels_tests.mutants import attention

    scores = {}
    info = folder / "plugin" / "fp8_sinks_mutants-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fp8-sinks-mutants\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nmutants = kernels_tests.mutants:register\n")
    mutant = folder / "mutant"
    mutant.write_text(attention.NONE)
    path = os.pathsep.join(map(str, (info.parent, ROOT)))
    with serve("fp8", folder, PYTHONPATH=path, **{attention.VARIABLE: str(mutant)}) as running:
        endpoint = endpoint_of(running)
        scores["fp8"] = score(endpoint, texts)
        scores["fp8"]["short"] = forced.score_all(endpoint, texts["short"], "decode")
        for name in attention.NAMES:
            mutant.write_text(name)
            scores[name] = score(endpoint, texts)
            if name in ("decode", "prefill"):
                scores[name]["short"] = forced.score_all(endpoint, texts["short"], "decode")
    print("\nmean |Δ log p|: against bf16 in decode, in prefill; decode against prefill of the same server")
    for name, paths in {"bf16": bf16, **scores}.items():
        against = [distance(paths[path], bf16[path]) for path in ("decode", "prefill")]
        print(f"{name:14}", *(f"{value:.4f}" for value in (*against, distance(paths["decode"], paths["prefill"]))))
    return scores


@pytest.fixture
def judged(scored):
    """A function: a server's answers held against BF16's by the bounds of profile fp8."""
    thresholds = SUITE.thresholds_of(profile.load("fp8"))

    def answers(name):
        pairs = zip(scored[name]["decode"], scored[name]["prefill"], strict=True)
        texts = [TextAnswer(context=CONTEXT, decode=decode, prefill=prefill) for decode, prefill in pairs]
        return Answers(source="heldout", texts=texts)

    return lambda name: judge(answers("bf16"), answers(name), thresholds, "baseline")


@pytest.mark.parametrize("name", ["bf16", pytest.param("fp8", marks=pytest.mark.fp8_cache)])
def test_forced_decode_agrees_with_prefill_on_the_same_server(scored, name):
    """Another path over the same cache: what remains is the order of BF16 sums, and codes that it tips over."""
    assert distance(scored[name]["decode"], scored[name]["prefill"]) < 0.02


def test_every_position_has_its_top_tokens_and_the_scored_token(scored):
    for path in ("decode", "prefill"):
        for text in scored["bf16"][path]:
            for token, value, top in zip(text.token_ids, text.logprobs, text.top, strict=True):
                assert len(top) in (20, 21) and top[token] == value


@pytest.mark.fp8_cache
def test_fp8_costs_as_much_as_rounding(scored):
    for path in ("decode", "prefill"):
        assert 0.05 < distance(scored["fp8"][path], scored["bf16"][path]) < 0.2


@pytest.mark.fp8_cache
def test_the_right_fp8_cache_passes_every_gate(judged):
    record = judged("fp8")
    assert record.passed and not record.failed_gates
    assert {gate.path for gate in record.gates if gate.passed} == {"decode", "prefill", "paths"}


@pytest.mark.fp8_cache
@pytest.mark.parametrize(
    ("mutant", "paths"),
    [
        ("decode", {"paths"}),
        ("prefill", {"paths"}),
        ("k_scale", {"decode", "prefill"}),
        ("v_scale", {"decode", "prefill"}),
        ("sinks_dropped", {"decode", "prefill"}),
        ("sinks_shifted", {"decode", "prefill"}),
        ("e5m2", {"decode", "prefill"}),
        ("truncated", {"decode", "prefill"}),
    ],
)
def test_every_mutant_fails_the_gate_that_should_see_it(judged, mutant, paths):
    failed = {(gate.path, gate.figure) for gate in judged(mutant).failed_gates}
    assert {(path, "mean_abs_delta") for path in paths} <= failed


@pytest.mark.fp8_cache
@pytest.mark.parametrize("path", ["decode", "prefill"])
def test_rounding_costs_at_most_six_tenths_of_truncation(scored, path):
    rounded, truncated = (distance(scored[name][path], scored["bf16"][path]) for name in ("fp8", "truncated"))
    assert rounded <= 0.6 * truncated


# A 5% error hides behind FP8's own against BF16 (0.14 for 0.13 nats), so these two look at FP8 servers alone.


@pytest.mark.fp8_cache
def test_a_broken_decode_kernel_moves_decode_alone(scored):
    right, broken = scored["fp8"], scored["decode"]
    assert distance(broken["decode"], right["decode"]) > 0.05
    assert distance(broken["short"], right["short"]) > 0.05
    assert distance(broken["prefill"], right["prefill"]) < 0.02


@pytest.mark.fp8_cache
def test_a_broken_prefill_kernel_moves_prefill_and_no_decode_after_a_short_prompt(scored):
    right, broken = scored["fp8"], scored["prefill"]
    assert distance(broken["prefill"], right["prefill"]) > 0.05
    assert distance(broken["short"], right["short"]) < 0.02


@pytest.mark.fp8_cache
@pytest.mark.parametrize("mutant", ["decode", "prefill"])
def test_a_broken_kernel_shows_as_decode_against_prefill_of_its_server(scored, mutant):
    """Without any reference server: the rounding of the cache cancels."""
    right, broken = (distance(scored[name]["decode"], scored[name]["prefill"]) for name in ("fp8", mutant))
    assert broken > 0.05 and broken > 4 * right
