"""KV formats: where a page holds K, V and scales, and which servers are refused. Needs no vLLM."""

import pytest
import torch

from flashinfer_patches.errors import Problem
from vllm_launch.decoder.contract import INT8, KV_FORMAT, KV_SCALES
from vllm_launch.plugin.attention import formats

PAGES = 3


def make_cache(kv_format: str, kv_heads: int, page: int, head_dim: int, padding: int = 0) -> torch.Tensor:
    """A cache of zeros as vLLM views it, with bytes between its pages."""
    line = formats.line_size(head_dim, with_scales=kv_format == "int8")
    size = kv_heads * page * line * formats.STORAGE[kv_format].itemsize
    memory = torch.zeros(PAGES, size + padding, dtype=torch.int8)
    return memory[:, :size].view(formats.STORAGE[kv_format]).view(PAGES, kv_heads, page, line)


def bytes_of(cache: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage())


@pytest.mark.parametrize(("kv_heads", "page", "head_dim"), [(8, 16, 64), (1, 16, 64), (2, 64, 128)])
def test_an_int8_page_holds_lines_and_behind_them_scales(kv_heads, page, head_dim):
    cache = make_cache("int8", kv_heads, page, head_dim)
    views, memory = formats.views(cache, "int8", head_dim), bytes_of(cache)
    p, head, token = 2, kv_heads - 1, 5
    line = p * kv_heads * page * 2 * (head_dim + 4) + (head * page + token) * 2 * head_dim
    scale = p * kv_heads * page * 2 * (head_dim + 4) + kv_heads * page * 2 * head_dim + 4 * (head * page + token)
    views.k[p, head, token, 0], views.k[p, head, token, -1] = 1, 2
    views.v[p, head, token, 0], views.v[p, head, token, -1] = 3, 4
    views.k_scale[p, head, token], views.v_scale[p, head, token] = 0.5, 2.0
    assert memory[[line, line + head_dim - 1, line + head_dim, line + 2 * head_dim - 1]].tolist() == [1, 2, 3, 4]
    floats = memory.view(torch.float32)
    assert (floats[scale // 4], floats[scale // 4 + kv_heads * page]) == (0.5, 2.0)
    assert memory.count_nonzero() == 4 + 2, "0.5 and 2.0 have one byte each that is not 0"


@pytest.mark.parametrize("padding", [0, 256])
@pytest.mark.parametrize("kv_format", formats.STORAGE)
@pytest.mark.parametrize(("kv_heads", "page", "head_dim"), [(8, 16, 64), (1, 16, 64), (2, 32, 128)])
def test_the_views_are_every_byte_of_a_page_once(kv_format, kv_heads, page, head_dim, padding):
    cache = make_cache(kv_format, kv_heads, page, head_dim, padding)
    views = [view for view in formats.views(cache, kv_format, head_dim) if view is not None]
    assert len(views) == (4 if kv_format == "int8" else 2)
    for view in views:
        view.view(torch.uint8).add_(1)
    pages = bytes_of(cache).view(PAGES, -1)
    size = pages.shape[1] - padding
    assert (pages[:, :size] == 1).all() and not pages[:, size:].any()
    values = views[0].numel() // PAGES * 2
    assert size == values * formats.STORAGE[kv_format].itemsize + (2 * kv_heads * page * 4 if len(views) == 4 else 0)


@pytest.mark.parametrize("page", [16, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kv_heads", [1, 8])
def test_lines_are_aligned_and_strides_equal(kv_heads, page, head_dim):
    k, v, k_scale, v_scale = formats.views(make_cache("int8", kv_heads, page, head_dim), "int8", head_dim)
    assert all(stride % 128 == 0 for stride in k.stride()[:3])
    assert k.stride() == v.stride() and k_scale.stride() == v_scale.stride()
    assert k_scale.stride(0) * 4 == k.stride(0)


def test_a_cache_in_another_order_is_not_copied():
    """Heads behind the tokens, as in layout NHD: scales cannot follow a page's lines."""
    cache = make_cache("int8", 2, 16, 64).view(PAGES, 16, 2, 136).transpose(1, 2)
    with pytest.raises(RuntimeError, match="view"):
        formats.views(cache, "int8", 64)


@pytest.mark.parametrize(
    ("kv_cache_dtype", "environment", "kv_format"),
    [
        ("auto", {}, "bf16"),
        ("bfloat16", {}, "bf16"),
        ("fp8", {}, "e4m3"),
        ("fp8_e4m3", {KV_FORMAT: "e4m3"}, "e4m3"),
        ("fp8", {KV_FORMAT: "int8"}, "int8-static"),
        ("auto", {KV_FORMAT: "int8"}, "bf16"),  # a layer that --kv-cache-dtype-skip-layers names
        (INT8, {}, "int8"),
    ],
)
def test_the_format_of_a_layer(kv_cache_dtype, environment, kv_format):
    assert formats.layer_format(kv_cache_dtype, environment) == kv_format


FILE = {KV_SCALES: "some.safetensors"}


@pytest.mark.parametrize(
    ("kv_cache_dtype", "decoder", "environment"),
    [
        ("auto", "lowp", {}),
        ("fp8", "flashinfer", FILE),
        ("fp8", "lowp", {KV_FORMAT: ""}),
        ("fp8", "lowp", {KV_FORMAT: "int8"} | FILE),
        ("fp8_e4m3", "lowp", {KV_FORMAT: "int8"} | FILE),
        (INT8, "lowp", {KV_FORMAT: "e4m3"}),
    ],
)
def test_servers_that_start(kv_cache_dtype, decoder, environment):
    formats.check(kv_cache_dtype, decoder, environment)


@pytest.mark.parametrize(
    ("kv_cache_dtype", "decoder", "environment", "kind", "words"),
    [
        ("fp8", "lowp", {KV_FORMAT: "int4"}, "profile", ("int4", "e4m3 or int8")),
        ("auto", "lowp", {KV_FORMAT: "int8"} | FILE, "profile", ("auto", "expected fp8")),
        (INT8, "lowp", {KV_FORMAT: "int8"} | FILE, "profile", (INT8, "expected fp8")),
        ("fp8", "flashinfer", {KV_FORMAT: "int8"} | FILE, "profile", ("int8-static", "flashinfer", "expected lowp")),
        (INT8, "flashinfer", {}, "profile", ("int8", "flashinfer", "expected lowp")),
        ("fp8", "lowp", {KV_FORMAT: "int8"}, "scales", ("expected a scale file",)),
        (INT8, "lowp", FILE, "scales", (INT8, "expected fp8")),
        ("auto", "lowp", FILE, "scales", ("BF16", "expected fp8")),
    ],
)
def test_servers_that_are_refused(kv_cache_dtype, decoder, environment, kind, words):
    with pytest.raises(Problem) as raised:
        formats.check(kv_cache_dtype, decoder, environment)
    assert raised.value.kind == kind and raised.value.remedy
    assert all(word in raised.value.message for word in words), raised.value.message
