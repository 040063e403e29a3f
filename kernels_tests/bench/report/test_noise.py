"""How well a ratio is known, and what the report says of it."""

import pytest

from bench.record.noise import INSIDE, MOST_NOISE, TOO_NOISY, ratios, verdict
from bench.serving import plot as plots
from bench.serving import section as summary
from kernels_tests.bench.report.test_document import line_with, text_of
from kernels_tests.bench.samples import a_rate, a_result, a_row, rates_around


@pytest.mark.parametrize(
    ("ratio", "noise", "said"),
    [
        (0.63, 1.05, "too noisy to compare"),
        (1.0, 0.3001, "too noisy to compare"),
        (2.0, 0.4, "too noisy to compare"),
        (0.88, 0.18, "inside the noise"),
        (1.25, 0.3, "inside the noise"),
        (1.31, 0.3, "faster"),
        (0.69, 0.3, "slower"),
        (1.5, float("inf"), "noise not known"),
    ],
)
def test_a_ratio_is_a_difference_or_noise_or_tells_nothing(ratio, noise, said):
    assert verdict(ratio, noise) == said
    less_is_faster = {"faster": "slower", "slower": "faster"}
    assert verdict(ratio, noise, more_is_faster=False) == less_is_faster.get(said, said)


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_inside_the_noise_is_called_so(seed):
    first, second = rates_around(500, seed), rates_around(500, seed + 100)
    message = plots.decode_message({"baseline": first, "fp8": second}, "baseline")
    found = ratios(second, first).values()
    noisy = sum(noise > MOST_NOISE for _, noise in found)
    said = f"{6 - noisy} {INSIDE}, {noisy} {TOO_NOISY}" if noisy else INSIDE
    ends = [f"{ratio:.2f}x ± {noise:.2f}" for ratio, noise in (min(found), max(found))]
    assert message == f"Decode rate: fp8 {' to '.join(ends)} baseline's (6 points: {said})"


def test_a_ratio_that_is_hardly_known_is_no_comparison_anywhere(tmp_path):
    base, other = [a_rate(decode=[100.0, 300.0, 500.0])], [a_rate(decode=[63.0, 190.0, 320.0])]
    result = a_result(a_row(rates=base), a_row("fp8", "fp8", rates=other))
    ((ratio, noise),) = ratios(other, base).values()
    words = f"fp8 {ratio:.2f}x ± {noise:.2f} baseline's (1 point: too noisy to compare)"
    assert noise > 1 and summary.messages_of(result)["decode"] == f"Decode rate: {words}"
    assert f"- **Decode rate:** {words}\n" in summary.summary_lines(result)
    assert line_with(text_of(result), "| Decode at 288 ").endswith(
        f"({ratio:.2f}x ± {noise:.2f}, too noisy to compare) |"
    )


def test_a_difference_beyond_the_noise_is_stated():
    base, faster = [a_rate(0), a_rate(1024)], [a_rate(0), a_rate(1024, decode=[605.0, 612.0, 620.0])]
    assert plots.decode_message({"baseline": base, "fp8": faster}, "baseline") == (
        "Decode rate: fp8 1.00x ± 0.06 to 1.20x ± 0.07 baseline's (2 points: 1 faster, 1 inside the noise)"
    )
    assert plots.decode_message({"fp8": faster, "baseline": base}, "fp8") == (
        "Decode rate: baseline 0.83x ± 0.05 to 1.00x ± 0.06 fp8's (2 points: 1 slower, 1 inside the noise)"
    )
    text = text_of(a_result(a_row(rates=base), a_row("fp8", "fp8", rates=faster)))
    assert line_with(text, "| Decode at 1,312 ").endswith("| 510 | 612 (**1.20x** ± 0.07) |")


def test_single_samples_have_no_known_noise():
    base, other = [a_rate(decode=[500.0])], [a_rate(decode=[600.0])]
    message = plots.decode_message({"baseline": base, "fp8": other}, "baseline")
    assert message == "Decode rate: fp8 1.20x baseline's (1 point: noise not known)"
    text = text_of(a_result(a_row(rates=base), a_row("fp8", "fp8", rates=other)))
    assert line_with(text, "| Decode at 288 ").endswith("| 500 | 600 (1.20x) |")


def test_ratios_and_their_noise():
    base = [a_rate(0, decode=[100.0, 100.0, 100.0]), a_rate(1024, decode=[90.0, 100.0, 110.0])]
    other = [a_rate(0, decode=[120.0, 120.0, 120.0]), a_rate(2048)]
    ((value, noise),) = ratios(other, base).values()
    assert (value, noise) == (pytest.approx(1.2), 0)
    other = [a_rate(0, decode=[120.0, 120.0, 120.0]), a_rate(1024, decode=[90.0, 100.0, 110.0])]
    first, second = ratios(other, base).values()
    typical = (0.1**2 / 2) ** 0.5  # of the spreads 0, 0, 0.1 and 0.1
    assert first == (pytest.approx(1.2), pytest.approx(4 * 1.2 * typical * (2 / 3) ** 0.5))
    assert second == (pytest.approx(1.0), pytest.approx(4 * 0.1 * (2 / 3) ** 0.5))
