"""What our kernel must show, held against made-up results; how the report and the plot's title say it."""

import pytest

from bench.kernels import claims
from bench.kernels import plot as kernels_plot
from bench.kernels.peers import OURS
from bench.report import document
from kernels_tests.bench.kernels.samples import a_failed_row, a_kernel_row, a_kernels_result, our_rows
from lowp.paged.shapes import Shape, even

SMALL, LARGE = even(1, 2048), even(32, 8192)
RAGGED = Shape((8192, 512, 512, 512))


def row(shape, us, kv_format="e4m3", kernel=OURS, **changes):
    return a_kernel_row(shape, kernel, kv_format, us=us, **({"rel_l2": 1.7e-3} | changes))


def found(*rows) -> dict[str, claims.Claim]:
    return {one.topic.removeprefix(f"{OURS} "): one for one in claims.claims(a_kernels_result(*rows))}


def test_the_law_is_that_of_the_design():
    # 1024 bytes a token: 32 x 8192 tokens at 0.93 x 4.4 TB/s take 65.6 us.
    one = row(LARGE, 69.2)
    assert claims.floor_us(one, 4.4e12) == pytest.approx(61.01, abs=0.01)
    assert claims.law_us(one, 4.4e12) == pytest.approx(69.10, abs=0.01)
    assert claims.over(one, 4.4e12) == pytest.approx(0.00144, abs=1e-4)
    assert claims.over(row(LARGE, 69.0), 4.4e12) < 0


def test_the_law_on_the_grid_in_ragged_batches_and_elsewhere():
    ragged_law = claims.law_us(row(RAGGED, 1.0), 4.4e12)
    rows = [
        row(SMALL, 3.3),
        row(LARGE, 69.2),
        row(RAGGED, ragged_law * 1.049),
        row(even(1, 2048, window_left=127), 3.4),
    ]
    got = found(*rows)
    grid = got["e4m3 within the law on the grid"]
    assert not grid.met and grid.words == "at 1 of 2 shapes: 32 x 8,192 (69.2 us, 0.1% over the law)"
    ragged, other = got["e4m3 within 1.05x the law in ragged batches"], "with a window, other heads or a wide table"
    assert ragged.met and ragged.words == "at 1 shape"
    assert got[f"e4m3 within the law {other}"].met
    assert not any("bf16" in topic for topic in got)
    got = found(row(RAGGED, ragged_law * 1.051), row(even(1, 2048, head_dim=128), 30.0))
    assert not got["e4m3 within 1.05x the law in ragged batches"].met
    assert not got[f"e4m3 within the law {other}"].met and "e4m3 within the law on the grid" not in got


def test_the_law_in_other_layouts_is_judged_apart():
    law = claims.law_us(row(RAGGED, 1.0), 4.4e12)
    got = found(row(even(1, 2048, layout="NHD"), 30.0), row(RAGGED._replace(layout="interleaved"), law * 1.02))
    assert got["e4m3 within the law in other layouts"].words.startswith("at 2 of 2 shapes: 1 x 2,048, NHD (30.0 us")
    assert [topic for topic in got if "the law" in topic] == ["e4m3 within the law in other layouts"]


def test_faster_than_all_others_of_both_formats():
    topic = "e4m3 faster than every other kernel's FP8 and BF16"
    others = [row(SMALL, 7.0, kernel="xqa-sinks"), row(SMALL, 5.0, "bf16", "fa2-sinks")]
    assert found(row(SMALL, 3.3), *others)[topic].met
    lost = found(row(SMALL, 6.0), *others)[topic]
    assert lost.words == "at 1 of 1 shape: 1 x 2,048 (6.0 us against 5.0 of fa2-sinks bf16)"
    assert not found(row(SMALL, 4.99), *others)[topic].met, "samples that overlap are not faster"
    # Other shapes, other lengths and failed kernels are no comparison.
    elsewhere = [row(even(1, 2048, window_left=127), 1.0, kernel="xqa-sinks"), a_failed_row(SMALL)]
    assert topic not in found(row(SMALL, 3.3), *elsewhere)


def test_bf16_not_slower():
    topic = "bf16 not slower than any other kernel's BF16"
    other, fp8 = row(SMALL, 5.0, "bf16", "fa2-sinks"), row(SMALL, 1.0, "e4m3", "xqa-sinks")
    assert found(row(SMALL, 5.01, "bf16"), other, fp8)[topic].met
    lost = found(row(SMALL, 5.2, "bf16"), other, fp8)[topic]
    assert not lost.met and "5.2 us against 5.0 of fa2-sinks bf16" in lost.words


def test_gain_over_our_own_bf16_only_where_it_is_large():
    topic = "e4m3 at least 1.8x as fast as its own BF16 from 256 MB of BF16 cache on"
    assert topic not in found(row(SMALL, 3.3), row(SMALL, 3.4, "bf16"))
    assert found(row(LARGE, 65), row(LARGE, 118, "bf16"))[topic].met
    missed = found(row(LARGE, 65), row(LARGE, 116.98, "bf16"))[topic]  # 1.7997
    assert not missed.met and missed.words == "at 1 of 1 shape: 32 x 8,192 (1.799x)"


def test_error():
    topic = "e4m3 within relL2 0.002"
    assert found(row(SMALL, 3.3))[topic].met
    assert found(row(SMALL, 3.3, rel_l2=2.01e-3))[topic].words == "at 1 of 1 shape: 1 x 2,048 (2.01e-03)"


def test_a_call_of_ours_that_failed_meets_no_claim():
    good = [row(SMALL, 3.3), row(SMALL, 9.0, "bf16", "fa2-sinks"), row(LARGE, 100.0, kernel="xqa-sinks")]
    got = found(*good, a_failed_row(LARGE, OURS), row(LARGE, 118, "bf16"))
    for topic in ("within the law on the grid", "faster than every other kernel's FP8 and BF16", "within relL2 0.002"):
        assert got[f"e4m3 {topic}"].words == "at 1 of 2 shapes: 32 x 8,192 (failed)"
    gain = "e4m3 at least 1.8x as fast as its own BF16 from 256 MB of BF16 cache on"
    assert got[gain].words == "at 1 of 1 shape: 32 x 8,192 (failed)"
    no_base = a_failed_row(LARGE, OURS, "bf16")
    assert found(row(LARGE, 65), no_base)[gain].words == "at 1 of 1 shape: 32 x 8,192 (bf16 failed)"


def test_who_could_not_be_compared_is_named():
    got = found(row(SMALL, 3.3), row(SMALL, 4.0, "bf16"), row(SMALL, 9.0, "bf16", "fa2-sinks"), a_failed_row(SMALL))
    assert got["e4m3 faster than every other kernel's FP8 and BF16"] == (
        f"{OURS} e4m3 faster than every other kernel's FP8 and BF16",
        True,
        "at 1 shape; not compared where they failed: xqa-sinks e4m3",
    )
    assert got["bf16 not slower than any other kernel's BF16"].words == "at 1 shape"


def test_many_misses_are_counted():
    rows = [row(even(batch, 2048), 100.0) for batch in range(1, 7)]
    words = found(*rows)["e4m3 within the law on the grid"].words
    assert words.startswith("at 6 of 6 shapes: ") and words.endswith("; and 2 more") and words.count(" over ") == 4


def test_the_report_says_it():
    text = document.markdown([a_kernels_result(*our_rows(), row(LARGE, 100.0, kernel="xqa-sinks", rel_l2=3.7e-2))], {})
    assert f"- **{OURS} e4m3 within the law on the grid:** met, at all 2 shapes" in text
    slow = [row(SMALL, 5.0)]
    assert "on the grid:** **not met**, at 1 of 1 shape:" in document.markdown([a_kernels_result(*slow)], {})
    law = text[text.index(f"### {OURS} e4m3 against the law") :]
    assert "| 1 x 2,048 | 0.48 | 4.01 | 3.30 | 14% | met | 1.7e-03 |" in law
    assert "| **+24.6%** |" in document.markdown([a_kernels_result(*slow)], {})
    assert "| 32 x 8,192 | 61.0 | 65.0, 1.7e-03 | 100, **3.7e-02** | 1.54x, xqa-sinks |" in text
    assert "| 1 x 2,048 | 0.48 | 3.30, 1.7e-03 |" not in text, "where nobody else was measured there is no comparison"
    assert "| 32 x 8,192 | 536.9 | 130, 1.7e-03 | 65.0, 1.7e-03 | 2.00x |" in text


def test_the_plots_title_is_about_our_kernel():
    alone = a_kernels_result(*our_rows())
    assert kernels_plot.title(alone) == f"{OURS} with an FP8 cache: within the law at 2 of 2 shapes"
    others = [row(SMALL, 6.6, kernel="xqa-sinks"), row(LARGE, 100.0, "bf16", "fa2-sinks")]
    odd = [row(RAGGED, 100.0), row(RAGGED, 1.0, kernel="xqa-sinks")]
    title = kernels_plot.title(a_kernels_result(*our_rows(), *others, *odd))
    assert title == (
        f"{OURS} with an FP8 cache: 1.54x to 2.00x as fast as the best other kernel, FP8 or BF16;"
        " within the law at 2 of 2 shapes"
    )
    assert "within the law at 0 of 1 shapes" in kernels_plot.title(a_kernels_result(row(RAGGED, 100.0)))
