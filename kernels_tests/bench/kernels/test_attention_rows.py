"""The second table of `bench kernels --validate`: attention in low precision, its verdicts and the formats' table."""

import pytest
import torch

from bench.kernels import attention_rows
from lowp.formats import FORMATS, convert
from lowp.paged.shapes import CACHES
from lowp.static_cache import full_fp8

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def rows(single_thread):
    return {row.name: row for row in attention_rows.rows()}


def storage_rows(rows):
    return {row.kv_format: row for row in rows.values() if "Q, K, V" not in row.name and "P scaled" not in row.name}


def test_the_table_has_the_verdict_of_each_format(rows):
    assert {name: row.ships for name, row in storage_rows(rows).items()} == {
        name: kv_format.ships for name, kv_format in FORMATS.items()
    }


def test_a_profile_can_choose_no_kernel_format_that_does_not_ship():
    """The formats of our kernels' caches, which `kv_format` and `kv-cache-dtype` of a profile name."""
    assert all(FORMATS[cache.values].ships for cache in CACHES.values())


def test_scales_of_q_k_v_do_not_help_with_unscaled_p(rows):
    for granularity in ("tensor", "head"):
        assert rows[f"e4m3 Q, K, V scaled per {granularity}"].rel_l2 > 0.5
        assert 0.04 < rows[f"e4m3 P scaled too, per {granularity}"].rel_l2 < 0.07
    assert rows["e4m3 Q, K, V, P unscaled"].weights_rel_l2 > 0.5
    assert rows["e4m3 P scaled too, per head"].weights_rel_l2 < 0.03
    assert not any(row.ships for name, row in rows.items() if name.startswith("e4m3") and "storage" not in name)


def test_errors_in_the_order_of_their_formats(rows):
    errors = {name: row.rel_l2 for name, row in storage_rows(rows).items()}
    order = ["fp16", "bf16", "int8", "e4m3", "e5m2", "int4"]
    assert sorted(order, key=errors.get) == order and errors["int4"] < errors["mxfp4"]
    assert errors["mxfp8"] == pytest.approx(errors["e4m3"], rel=0.1)


def test_the_lines_and_the_plot_have_every_row(rows, tmp_path):
    lines = list(attention_rows.lines(list(rows.values())))
    verdicts = {line[:32].strip(): line.endswith(" ship") and not line.endswith("not ship") for line in lines[1:]}
    assert verdicts == {name: row.ships for name, row in rows.items()}
    attention_rows.plot(list(rows.values()), tmp_path / "plot.png")
    assert 1000 < (tmp_path / "plot.png").stat().st_size < 100_000


def worst(**options):
    q, k, v = attention_rows.draw()
    exact = (q.double() @ k.double().transpose(-1, -2) / 8).softmax(-1) @ v.double()
    out = full_fp8.attention(10 * q, 0.1 * k, 7 * v, **options) / 7
    return ((out - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("granularity", ["tensor", "head"])
def test_scales_fold_into_the_products(granularity):
    assert worst(granularity=granularity) < 0.07


def test_heads_of_unequal_size_need_a_scale_each():
    inputs = [x * torch.exp2(torch.arange(-14.0, 14, 3.5))[:, None, None] for x in attention_rows.draw()[1:]]
    q = attention_rows.draw().q / torch.exp2(torch.arange(-14.0, 14, 3.5))[:, None, None]
    exact = (q.double() @ inputs[0].double().transpose(-1, -2) / 8).softmax(-1) @ inputs[1].double()
    errors = {}
    for granularity in ("tensor", "head"):
        error = full_fp8.attention(q, *inputs, granularity=granularity) - exact
        errors[granularity] = (error[0].flatten(1).norm(dim=1) / exact[0].flatten(1).norm(dim=1)).max().item()
    assert errors["head"] < 0.07 and errors["tensor"] > 0.5


def test_a_granularity_that_does_not_fold_raises():
    with pytest.raises(ValueError, match="expected none, tensor or head"):
        full_fp8.attention(*attention_rows.draw(), granularity="token_head")


def test_unscaled_p_shows():
    assert worst(scaled_p=False) > 0.5


@pytest.mark.parametrize("index", range(3))
def test_a_scale_with_a_wrong_exponent_shows(monkeypatch, index):
    """Of Q, K or V, when it is folded in."""
    right, calls = convert.amax_scale, []

    def wrong(*arguments):
        calls.append(arguments)
        scale = right(*arguments)
        return scale * 2 if len(calls) == index + 1 else scale

    quantize = full_fp8.quantize

    def quantize_with_the_right_scale(x, kv_format, scale=None):
        return quantize(x, kv_format, scale if scale is None else right(x, kv_format, "head", "HND"))

    monkeypatch.setattr(full_fp8, "amax_scale", wrong)
    monkeypatch.setattr(full_fp8, "quantize", quantize_with_the_right_scale)
    assert worst() > 0.3
