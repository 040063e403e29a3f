"""The report's part on the roofline: what stands beside a measured gain, and where there is no roofline."""

import re

import pytest

from bench.record.noise import with_noise
from bench.roofline import section as report_roofline
from bench.roofline.prediction import gain, pays_from
from bench.roofline.shape import load
from bench.serving.result import Rate, ServingResult
from kernels_tests.bench.samples import a_resolved, a_result, a_row

LARGE = load("gpt-oss-120b")
SIZES = {"layers": 36, "query_heads": 64, "kv_heads": 8, "head_dim": 64, "sliding_window": 128}
ACCURACY = {"baseline": "reference", "fp8": "pass: 32/32"}
# Seconds of a decode step by context and cache, as stock vLLM 0.26.0 took them on an H200 with 1 request.
STEPS = {2048: (5.105e-3, 5.191e-3), 32768: (5.348e-3, 5.430e-3), 122880: (6.193e-3, 6.244e-3)}


def rates(place: int, prompt=2048, output=128, concurrency=1) -> list[Rate]:
    """place: 0 for BF16, 1 for FP8; ten samples within 0.2%."""
    return [
        Rate(
            depth=context - prompt,
            prompt=prompt,
            output=output,
            concurrency=concurrency,
            decode_tok_s=[concurrency / steps[place] * (1 + 0.0002 * sample) for sample in range(-5, 5)],
            prefill_tok_s=[20_000.0] * 10,
            first_token_ms=[90.0] * 10 * concurrency,
        )
        for context, steps in STEPS.items()
    ]


def served(name="gpt-oss-120b", gpu=True, fp8=None, baseline=None, **model) -> ServingResult:
    """A large model with the two profiles."""
    rows = (
        a_row(**{"rates": rates(0)} | (baseline or {})),
        a_row("fp8", "fp8", **{"rates": rates(1)} | (fp8 or {})),
    )
    result = a_result(*rows, gpu=gpu)
    described = {"name": name, "weight_bytes": 65_000_000_000, "max_positions": 131072} | SIZES | model
    return result.model_copy(update={"model": result.model.model_copy(update=described)})


def text_of(result: ServingResult, **accuracy) -> str:
    return "\n\n".join(report_roofline.blocks(result, ACCURACY | accuracy, "baseline"))


def lines_of(text: str, start: str) -> list[list[str]]:
    found = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_measured_bytes_and_the_plan_stand_side_by_side():
    text = text_of(served())
    assert "Decode rate of **fp8** (pass: 32/32) over **baseline** (reference):" in text
    ((_, _, _, bf16, fp8, measured, by_bytes),) = lines_of(text, "2,112 ")
    assert (bf16, fp8, by_bytes) == ("196", "193", "1.008x")
    assert re.fullmatch(r"\*\*0\.983x\*\* ± 0\.00\d", measured)
    assert lines_of(text, "fp8, measured") == [["fp8, measured on NVIDIA H200", bf16, fp8, measured]]
    assert lines_of(text, "fp8, bytes alone") == [["fp8, bytes alone", "", "", "at most 1.008x"]]
    assert lines_of(text, "the original plan") == [
        ["the original plan, expected on a DGX Spark", "48.9", "50.7 to 52.6", "1.04x to 1.08x"]
    ]
    assert lines_of(text, "bytes alone, from") == [
        ["bytes alone, from the plan's rate", "48.9", "49.3", "at most 1.008x"]
    ]


@pytest.mark.parametrize("context", STEPS)
def test_every_context_has_its_own_limit(context):
    ((_, _, _, _, _, measured, by_bytes),) = lines_of(text_of(served()), f"{context + 64:,} ")
    assert float(by_bytes[:-1]) == pytest.approx(gain(LARGE, "fp8", context + 64, 1), abs=0.005)
    assert float(measured.strip("*").partition("x")[0]) == pytest.approx(
        STEPS[context][0] / STEPS[context][1], abs=0.005
    )


def test_says_from_which_context_fp8_pays():
    both = rates(1) + rates(1, concurrency=2)
    found = lines_of(text_of(served(fp8={"rates": both})), "fp8 |")
    expected = [[f"{pays_from(LARGE, 'fp8', least, batch):,}" for least in (1.01, 1.05, 1.1)] for batch in (1, 2)]
    assert found == [["fp8", str(batch), *contexts] for batch, contexts in zip((1, 2), expected, strict=True)]


def test_sliding_layers_in_bf16_have_another_limit():
    resolved = a_resolved("fp8").model_copy(update={"kv_skip_layers": ["sliding_window"]})
    ((*_, skipping),) = lines_of(text_of(served(fp8={"resolved": resolved})), "fp8 |")
    assert skipping == f"{pays_from(LARGE, 'fp8-skip-sliding', 1.1, 1):,}" != f"{pays_from(LARGE, 'fp8', 1.1, 1):,}"


def test_tables_have_at_most_seven_columns():
    for line in text_of(served()).splitlines():
        assert line.count("|") <= 8


def test_the_plan_stands_only_beside_its_model():
    shown = text_of(served("gpt-oss-20b", layers=24))
    assert "gain, by bytes" in shown
    assert "48.9" not in shown


def test_the_plan_without_its_prompt_says_nothing_of_a_measurement():
    longer = [rate.model_copy(update={"depth": rate.depth + 4096}) for rate in rates(1)]
    text = text_of(served(fp8={"rates": longer}))
    assert not lines_of(text, "fp8, ")
    assert lines_of(text, "the original plan")
    assert "over **baseline** (reference): no point in common." in text


def test_the_plan_stands_beside_fp8_over_bf16_alone():
    other = {"resolved": a_resolved("bfloat16")}
    text = text_of(served(fp8=other))
    assert not lines_of(text, "fp8, ") and lines_of(text, "2,112 ")[0][-1] == "1.000x"
    assert not lines_of(text, "fp8 |")


def test_the_plans_line_is_that_of_the_longest_output():
    both = {"rates": rates(0) + rates(0, output=32)}
    faster = [rate.model_copy(update={"decode_tok_s": [999.0] * 10}) for rate in rates(1, output=32)]
    assert lines_of(text_of(served(baseline=both, fp8={"rates": [*faster, *rates(1)]})), "fp8, measured")[0][2] == "193"


def test_the_limit_is_that_of_the_requests_at_once():
    of_both = [{"rates": rates(place, concurrency=8)} for place in (0, 1)]
    ((*_, by_bytes),) = lines_of(text_of(served(baseline=of_both[0], fp8=of_both[1])), "32,832 ")
    assert by_bytes == f"{gain(LARGE, 'fp8', 32832, 8):.2f}x" != f"{gain(LARGE, 'fp8', 32832, 1):.2f}x"


@pytest.mark.parametrize("profile", ["baseline", "fp8"])
def test_speed_without_accuracy_is_not_shown(profile):
    text = text_of(served(), **{profile: None})
    assert "196" not in text and "193" not in text
    assert "No measured gain: there is no decode rate with an accuracy record for" in text
    assert lines_of(text, "the original plan")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu": False}, "No roofline: on a CPU, arithmetic"),
        ({"name": "tiny_gpt_oss", "weight_bytes": 12_107_816}, "too small, 12.1 MB of weights: launching kernels"),
        ({"name": "other"}, "the bytes of other with these sizes are not counted, only those of gpt-oss-120b, gpt-oss"),
        ({"layers": 35}, "the bytes of gpt-oss-120b with these sizes are not counted"),
    ],
)
def test_says_in_one_line_why_there_is_no_roofline(change, reason):
    (only,) = report_roofline.blocks(served(**change), ACCURACY, "baseline")
    assert only.startswith("No roofline: ") and reason in only
    assert "\n" not in only and not re.search(r"\d\.\d+x", only)


@pytest.mark.parametrize(
    "change", [{"resolved": None}, {"resolved": a_resolved("fp8").model_copy(update={"kv_skip_layers": ["0"]})}]
)
def test_a_cache_that_is_not_counted_has_no_limit(change):
    text = text_of(served(fp8=change))
    assert lines_of(text, "2,112 ")[0][-1] == "not counted"
    assert not lines_of(text, "fp8 |") and not lines_of(text, "fp8, ")


@pytest.mark.parametrize(
    ("noise", "text"), [(0.03, "1.02x ± 0.03"), (0.004, "1.020x ± 0.004"), (float("inf"), "1.02x")]
)
def test_ratio_with_noise(noise, text):
    assert with_noise(1.02, noise) == text
