"""Suites: which one measures a model, what it holds, and which mistakes are refused."""

import pytest

from bench import suite
from bench.suite import Thresholds
from flashinfer_patches.errors import Problem
from vllm_launch import profile

PROFILES = ("baseline", "fp8", "fp8-skip-sliding")


@pytest.fixture
def suite_of(tmp_path):
    """A function that loads a suite file of these lines."""

    def load(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return suite.load(str(path), "tiny_gpt_oss")

    return load


def test_a_model_has_its_own_suite_or_the_default():
    for model in ("tiny_gpt_oss", "gpt-oss-20b", "gpt-oss-120b"):
        assert suite.load(None, model).name == model
    assert suite.load(None, "any").name == suite.load("default", "tiny_gpt_oss").name == "default"
    assert suite.load(None, "../suites/default").name == "default"


def test_the_embedded_model_is_judged_and_the_real_models_are_measured_only():
    for name in PROFILES:
        gates = suite.load(None, "tiny_gpt_oss").thresholds_of(profile.load(name))
        assert None not in gates.decode.model_dump().values() and None not in gates.sinks.model_dump().values()
        assert gates.paths.mean_abs_delta and gates.decode_at_context.mean_abs_delta > gates.decode.mean_abs_delta
        for model in ("gpt-oss-20b", "gpt-oss-120b", "any"):
            assert suite.load(None, model).thresholds_of(profile.load(name)) == Thresholds()


def test_every_model_is_scored_on_4000_tokens_or_more_within_its_context():
    for name in suite.names():
        texts = suite.load(name, "any").texts
        longest = max(entry.context + entry.tokens for entry in texts.contexts)
        context = profile.load("baseline").model_settings(name).vllm.get("max-model-len", 4096)
        assert texts.tokens >= 4000 and longest < context
        assert min(entry.texts for entry in texts.contexts) >= 8, "fewer have no interval"


def test_the_grid_of_the_real_models():
    grid = suite.load(None, "gpt-oss-120b").grid
    assert (grid.prompt, grid.output, grid.runs) == ([2048], [32, 128], 10)
    assert (grid.depth[0], grid.depth[-1]) == (0, 122880)


def test_a_grid_counts_the_load_at_its_depths_alone():
    grid = suite.load(None, "tiny_gpt_oss").grid
    assert (grid.depth, grid.concurrency, grid.load_depth) == ([0, 1024], [1, 4, 16], [0])
    assert [grid.concurrency_at(depth) for depth in grid.depth] == [[1, 4, 16], [1]]
    assert (grid.points, grid.requests) == (4, 3 * (1 + 4 + 16 + 1))
    every_pair = grid.replaced({"depth": [0, 1024]})
    assert (every_pair.points, every_pair.requests) == (6, 3 * 2 * (1 + 4 + 16))


def test_a_load_depth_that_is_no_depth_is_refused(suite_of):
    with pytest.raises(Problem) as caught:
        suite_of("extends: tiny_gpt_oss\ngrid: {depth: [128]}\n")
    assert caught.value.kind == "suite" and "load_depth has 0, depth has 128" in caught.value.message


def test_the_thresholds_of_the_nearest_profile_win_and_the_others_remain(tmp_path, suite_of):
    (tmp_path / "my-fp8.yaml").write_text("extends: fp8-skip-sliding\n")
    (tmp_path / "mine-too.yaml").write_text("extends: my-fp8.yaml\n")
    gates = "{decode: {kl: 0.5}, sinks: {factor: 9}}"
    measured = suite_of(f"extends: tiny_gpt_oss\nthresholds: {{my-fp8: {gates}}}\n")
    skip, fp8 = (measured.thresholds_of(profile.load(name)) for name in ("fp8-skip-sliding", "fp8"))
    assert skip.sinks == fp8.sinks and skip.decode != fp8.decode, "an entry of its own, but for the sinks"
    for name in ("my-fp8", "mine-too"):
        derived = measured.thresholds_of(profile.load(str(tmp_path / f"{name}.yaml")))
        assert derived.decode == skip.decode.model_copy(update={"kl": 0.5})
        assert derived.sinks == skip.sinks.model_copy(update={"factor": 9})
        assert derived.paths == skip.paths


def test_a_null_takes_a_threshold_away(tmp_path, suite_of):
    measured = suite_of("extends: tiny_gpt_oss\nthresholds: {fp8: {decode: {kl: null}}}\n")
    gates = measured.thresholds_of(profile.load("fp8")).decode
    assert gates.kl is None and gates.top1


def test_a_reference_is_relative_to_the_file_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.yaml").write_text("extends: default\ngreedy: {reference: mine.yaml}\n")
    (tmp_path / "over.yaml").write_text("extends: deep/base.yaml\n")
    monkeypatch.chdir(tmp_path)
    for path in ("deep/base.yaml", "over.yaml"):
        assert suite.load(path, "any").greedy.reference == "deep/mine.yaml"
    assert suite.load(None, "any").greedy.reference == "baseline"


def test_a_relative_gate_is_inherited_and_taken_away(tmp_path, suite_of):
    (tmp_path / "a.yaml").write_text("extends: fp8\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    a, b = (profile.load(str(tmp_path / f"{name}.yaml")) for name in "ab")
    gate = "{relative: {profile: fp8, kl: 0.12, mean_abs_delta: 0.25}}"
    loaded = suite_of(f"extends: tiny_gpt_oss\nthresholds: {{a: {gate}}}\n")
    assert loaded.thresholds_of(a).relative == loaded.thresholds_of(b).relative
    assert loaded.thresholds_of(a).relative.figures == {"kl": 0.12, "mean_abs_delta": 0.25}
    assert loaded.thresholds_of(a).decode == loaded.thresholds_of(profile.load("fp8")).decode
    without = suite_of(f"extends: tiny_gpt_oss\nthresholds: {{a: {gate}, b: {{relative: null}}}}\n")
    assert without.thresholds_of(a).relative and without.thresholds_of(b).relative is None


def test_int8_is_judged_over_fp8_and_by_tighter_bounds():
    loaded = suite.load(None, "tiny_gpt_oss")
    fp8, int8, static = (loaded.thresholds_of(profile.load(name)) for name in ("fp8", "int8", "int8-static"))
    assert fp8.relative is None and {int8.relative.profile, static.relative.profile} == {"fp8"}
    assert int8.relative.figures == {"kl": 0.12, "mean_abs_delta": 0.25}
    assert static.relative.figures == {"kl": 0.3, "mean_abs_delta": 0.45}
    assert int8.sinks == static.sinks == fp8.sinks
    for path in ("decode", "prefill", "decode_at_context", "paths"):
        bounds = [getattr(each, path) for each in (int8, static, fp8)]
        deltas, divergences = zip(*((each.mean_abs_delta, each.kl) for each in bounds), strict=True)
        assert list(deltas) == sorted(deltas) and list(divergences) == sorted(divergences)
        assert deltas[1] < deltas[2] and divergences[1] < divergences[2]


def test_the_reference_of_a_suite_for_a_gpu_has_the_decoder_of_fp8():
    loaded = suite.load("tiny_gpt_oss-lowp", "tiny_gpt_oss")
    assert loaded.texts == suite.load(None, "tiny_gpt_oss").texts
    reference, fp8 = profile.load(loaded.greedy.reference), profile.load("fp8")
    assert reference.decoder == fp8.decoder and reference.vllm == profile.load("baseline").vllm
    assert loaded.thresholds_of(reference) == loaded.thresholds_of(profile.load("baseline"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("extends: default\nthresholds: {fp8: {relative: {profile: baseline}}}\n", "thresholds.fp8.relative"),
        ("extends: default\nthresholds: {fp8: {relative: {kl: 0.1}}}\n", "thresholds.fp8.relative.profile"),
        ("extends: default\nthresholds: {fp8: {relative: {profile: x, kl: 0}}}\n", "thresholds.fp8.relative.kl"),
        ("extends: default\ngreedy: {min_match: 1.5}\n", "greedy.min_match"),
        ("extends: default\ngreedy: {prompts: []}\n", "greedy.prompts"),
        ("extends: default\ngrid: {runs: 0}\n", "grid.runs"),
        ("extends: default\ngrid: {depth: []}\n", "grid.depth"),
        ("extends: default\ngrid: {depth: [0], depth: [1]}\n", "'depth'"),
        ("extends: default\ntexts: {contexts: []}\n", "texts.contexts"),
        (
            "extends: default\ntexts:\n  contexts:\n    - {context: 8, texts: 1, tokens: 2}\n"
            "    - {context: 8, texts: 1, tokens: 4, prefill: false}\n",
            "context 8",
        ),
        ("extends: default\nthresholds: {fp8: {decode: {top1: 95}}}\n", "thresholds.fp8.decode.top1"),
        ("extends: default\nthresholds: {fp8: {decode: {kl: .inf}}}\n", "finite"),
        ("extends: default\nvllm: {seed: 1}\n", "vllm"),
        ("grid: {prompt: [1], output: [2], depth: [0], concurrency: [1], runs: 1}\n", "greedy"),
        ("extends: nowhere\n", "nowhere"),
        ("extends: mine.yaml\n", "mine.yaml"),
        ("extends: baseline\n", "baseline"),
        ("name: yours\nextends: default\n", "`name`"),
        ("just text\n", "mine.yaml"),
    ],
)
def test_a_bad_suite_is_a_single_line_that_names_the_key(suite_of, text, key):
    with pytest.raises(Problem) as caught:
        suite_of(text)
    assert caught.value.kind == "suite" and caught.value.exit_code == 2
    assert key in caught.value.message and "\n" not in caught.value.message


def test_thresholds_of_a_misspelled_profile_are_refused(tmp_path, suite_of):
    loaded = suite_of(
        "extends: tiny_gpt_oss\nthresholds: {fp8_skip_sliding: {decode: {kl: 1}}, child: {decode: {kl: 2}}}\n"
    )
    (tmp_path / "child.yaml").write_text("extends: fp8\ndescription: mine\n")
    child = profile.load(str(tmp_path / "child.yaml"))
    with pytest.raises(Problem) as caught:
        loaded.check_thresholds([profile.load("fp8"), child])
    assert caught.value.kind == "suite" and "fp8_skip_sliding" in caught.value.message
    loaded = suite_of("extends: default\nthresholds: {fp8: {relative: {profile: fp_8, kl: 1}}}\n")
    with pytest.raises(Problem, match="fp_8"):
        loaded.check_thresholds([profile.load("fp8")])
    suite_of("extends: tiny_gpt_oss\nthresholds: {child: {decode: {kl: 2}}}\n").check_thresholds([child])
