"""The roofline: the figures that the project states, properties, the command."""

import json
import math
from itertools import product

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.roofline import command as roofline_command
from bench.roofline import plot as roofline_plot
from bench.roofline import prediction as roofline
from bench.roofline import shape
from flashinfer_patches.errors import EXIT_CODES

H200, SPARK = 4.3e12, 273e9  # bytes/s
BATCHES = (1, 8, 32, 128)
K = 1024
# gpt-oss-120b, tokens/s of all requests, BF16 -> FP8, by batch; as printed in the project's notes.
TABLE = {
    (H200, 2 * K): "846->853 1975->2012 3087->3178 7508->8073",
    (H200, 32 * K): "692->767 1299->1590 1703->2241 2522->3913",
    (H200, 128 * K): "437->579 620->952 699->1153 807->1477",
    (SPARK, 2 * K): "53.7->54.1 125->128 196->202 477->513",
    (SPARK, 32 * K): "44->49 82->101 108->142 160->248",
    (SPARK, 128 * K): "28->37 39->60 44->73 51->94",
}
LARGE, SMALL = shape.load("gpt-oss-120b"), shape.load("gpt-oss-20b")


def rate(model_shape: shape.ModelShape, kv_format: str, context: int, batch: int, bandwidth: float = H200) -> float:
    return roofline.predict(model_shape, kv_format, context, batch, bandwidth).tokens_s


def differences(model_shape: shape.ModelShape) -> list[str]:
    """Where the table is not reproduced to its last printed digit."""
    mismatches = []
    for (bandwidth, context), line in TABLE.items():
        for batch, pair in zip(BATCHES, line.split(), strict=True):
            for kv_format, printed in zip(("bf16", "fp8"), pair.split("->"), strict=True):
                tokens_s = rate(model_shape, kv_format, context, batch, bandwidth)
                if f"{tokens_s:.{len(printed.partition('.')[2])}f}" != printed:
                    mismatches.append(
                        f"{bandwidth:g} B/s, {context}, batch {batch}, {kv_format}: {tokens_s} is not {printed}"
                    )
    return mismatches


def run(*words: str):
    return CliRunner().invoke(roofline_command.roofline, words)


def test_reproduces_the_table():
    assert differences(LARGE) == []
    assert rate(LARGE, "fp8", 128 * K, 1) / rate(LARGE, "bf16", 128 * K, 1) == pytest.approx(1.33, abs=0.005)
    assert rate(LARGE, "fp8", 128 * K, 128) / rate(LARGE, "bf16", 128 * K, 128) == pytest.approx(1.83, abs=0.005)


@pytest.mark.parametrize(
    "change",
    [{"window": LARGE.max_context}, {"experts_per_token": 128}, {"experts": 4}, {"head_bytes": 0}, {"window": 0}],
    ids=["window ignored", "all experts active", "experts of one token", "no lm_head", "sliding layers ignored"],
)
def test_the_table_tells_a_wrong_count(change):
    assert differences(LARGE._replace(**change))


def test_active_weights_of_a_token():
    assert f"{roofline.weight_bytes(LARGE, 1) / 1e9:.2f}" == "5.00"
    saved = (LARGE.attention_bytes + LARGE.head_bytes) * (1 - shape.BYTES_MXFP4 / shape.BYTES_16)
    assert f"{(roofline.weight_bytes(LARGE, 1) - saved) / 1e9:.2f}" == "2.75"  # if all but router and norms were MXFP4


def test_expected_active_experts():
    assert roofline.active_experts(LARGE, 1) == pytest.approx(4)
    assert roofline.active_experts(LARGE, 10**6) == pytest.approx(128)
    two = 4 + 4 * (1 - 4 / 128)  # the second token's experts, less those that the first has too
    assert roofline.active_experts(LARGE, 2) == pytest.approx(two)


def test_cache_bytes_by_group():
    token = 18 * 8 * 64 * 2  # values of one token in either group
    assert roofline.kv_bytes(LARGE, "bf16", 100, 3) == 3 * 2 * (100 + 100) * token
    assert roofline.kv_bytes(LARGE, "fp8", 1000, 3) == 3 * (1000 + 128) * token
    assert roofline.kv_bytes(LARGE, "fp8-skip-sliding", 1000, 3) == 3 * (1000 + 2 * 128) * token


contexts = st.integers(1, LARGE.max_context)
batches = st.integers(1, 512)
fp8_formats = st.sampled_from(["fp8", "fp8-skip-sliding"])


@given(contexts, contexts, batches, fp8_formats)
def test_a_longer_context_is_slower_and_gains_more(first, second, batch, kv_format):
    shorter, longer = sorted((first, second))
    assert rate(LARGE, kv_format, longer, batch) <= rate(LARGE, kv_format, shorter, batch)
    assert roofline.gain(LARGE, kv_format, longer, batch) >= roofline.gain(LARGE, kv_format, shorter, batch) - 1e-12
    assert (
        rate(LARGE, "bf16", longer, batch)
        < rate(LARGE, kv_format, longer, batch)
        < 2 * rate(LARGE, "bf16", longer, batch)
    )


@given(batches, fp8_formats, st.floats(1.0001, 1.5))
def test_pays_from_is_the_first_context(batch, kv_format, least):
    first = roofline.pays_from(LARGE, kv_format, least, batch)
    if first is None:
        assert roofline.gain(LARGE, kv_format, LARGE.max_context, batch) < least
    else:
        assert roofline.gain(LARGE, kv_format, first, batch) >= least
        assert first == 1 or roofline.gain(LARGE, kv_format, first - 1, batch) < least


def test_pays_from_looks_at_every_context():
    truncated = SMALL._replace(max_context=3000)
    paying = [c for c in range(1, 3001) if roofline.gain(truncated, "fp8", c, 1) >= 1.01]
    assert roofline.pays_from(truncated, "fp8", 1.01, 1) == paying[0]
    assert roofline.pays_from(truncated, "fp8", 1.05, 1) is None


@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_unreadable_configs_end_the_command(tmp_path, content):
    path = tmp_path / "config.json"
    if content:
        path.write_bytes(content.encode("latin-1"))
    result = run("--model", str(path), "--bandwidth", "1TB/s")
    assert result.exit_code == EXIT_CODES["model"]
    assert result.stdout == ""
    assert "remedy: give --model" in result.stderr


@pytest.mark.parametrize(
    ("text", "bytes_s"), [("4.3TB/s", 4.3e12), ("273 GB/s", 273e9), (" 4300GB/s ", 4.3e12), ("4,300GB/s", None)]
)
def test_bandwidth(text, bytes_s):
    if bytes_s:
        assert math.isclose(roofline_command.bandwidth_of(text), bytes_s)
    else:
        assert run("--model", "gpt-oss-20b", "--bandwidth", text).exit_code == 2


@pytest.mark.parametrize("text", ["4.3", "4.3TB", "4.3Tb/s", "4.3TiB/s", "0TB/s", "-1TB/s", "nanTB/s", "1e3GB/s"])
def test_bandwidth_needs_a_number_and_a_unit(text):
    result = run("--model", "gpt-oss-20b", "--bandwidth", text)
    assert result.exit_code == 2
    assert "4.3TB/s or 273GB/s" in result.stderr


def test_text_shows_rates_and_where_fp8_pays():
    result = run("--model", "gpt-oss-120b", "--bandwidth", "4.3TB/s", "--batch", "1", "--context", "2048")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    pays = [f"{roofline.pays_from(LARGE, 'fp8', least, 1):,}" for least in (1.01, 1.05, 1.1)]
    assert next(line for line in lines if line[:1] == ["1"])[1:6] == ["4.00", "5.00", *pays]
    assert lines[-1][:7] == ["1", "2,048", "0.0802", "0.0401", "0.0425", "846", "853"]


def test_json_has_every_format():
    words = ["--batch", "8", "--batch", "1", "--context", "2048", "--json"]
    content = json.loads(run("--model", "gpt-oss-120b", "--bandwidth", "4.3TB/s", *words).stdout)
    assert content["bandwidth_bytes_s"] == H200
    assert content["shape"]["window"] == 128
    assert content["active_experts"] == {"1": pytest.approx(4), "8": roofline.active_experts(LARGE, 8)}
    assert [(point["kv_format"], point["batch"]) for point in content["points"]] == [
        (kv_format, batch) for kv_format in roofline.KV_FORMATS for batch in (1, 8)
    ]
    assert content["points"][2]["tokens_s"] == rate(LARGE, "fp8", 2048, 1)
    pays = {(entry["kv_format"], entry["batch"], entry["gain"]): entry["context"] for entry in content["pays_from"]}
    assert pays["fp8", 8, 1.05] == roofline.pays_from(LARGE, "fp8", 1.05, 8)


def test_contexts_end_where_the_model_ends(tmp_path):
    path = tmp_path / "short.json"
    content = json.loads((shape.SHIPPED / "gpt-oss-20b.json").read_text())
    path.write_text(json.dumps(content | {"max_position_embeddings": 512}))
    result = run("--model", str(path), "--bandwidth", "1GB/s")
    assert result.stdout.splitlines()[-1].split()[:2] == ["128", "512"]
    assert run("--model", str(path), "--bandwidth", "1GB/s", "--context", "513").exit_code == 2


def test_the_plot_shows_the_prediction_and_where_fp8_pays(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(roofline_plot, "save", lambda figure, path: figures.append(figure))
    words = ["--batch", "1", "--batch", "8", "--plot", str(tmp_path / "a.png")]
    assert run("--model", "gpt-oss-120b", "--bandwidth", "4.3TB/s", *words).exit_code == 0
    rates, gains = figures[0].axes
    contexts = list(map(int, rates.lines[0].get_xdata()))
    assert contexts[-1] == LARGE.max_context
    for line, (batch, kv_format) in zip(rates.lines, product((1, 8), ("bf16", "fp8")), strict=True):
        assert list(line.get_ydata()) == [rate(LARGE, kv_format, context, batch) for context in contexts]
    marks = [int(line.get_xdata()[0]) for line in gains.lines if len(line.get_xdata()) == 1]
    assert marks == [roofline.pays_from(LARGE, "fp8", 1.1, batch) for batch in (1, 8)]
    assert [line.get_label() for line in gains.lines if len(line.get_xdata()) > 1] == [
        "1 request",
        "8 requests at once",
    ]


def test_the_plot_is_written_and_its_title_names_the_contexts(tmp_path):
    words = ["--model", "gpt-oss-120b", "--bandwidth", "4.3TB/s", "--plot", str(tmp_path / "a.png")]
    assert run(*words).exit_code == 0 and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    message = roofline_plot.roofline_message(LARGE, list(BATCHES))
    assert f"from {roofline.pays_from(LARGE, 'fp8', 1.1, 1):,} tokens with 1 request" in message
    assert "never with 1 request" in roofline_plot.roofline_message(LARGE._replace(max_context=512), [1])


def test_a_plot_that_cannot_be_written_is_a_problem(tmp_path):
    result = run("--model", "gpt-oss-20b", "--bandwidth", "1TB/s", "--plot", str(tmp_path / "absent" / "plot.png"))
    assert result.exit_code == EXIT_CODES["disk"]
    assert "remedy" in result.stderr
