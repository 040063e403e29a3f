"""Made engine steps: a layer, a builder and a paged cache as vLLM makes them, and the expected attention in fp64."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from kernels_tests.vllm_launch import scale_files
from kernels_tests.vllm_launch.plugin.storage import INT8_LARGEST, assert_stored, poison, stored
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import impl as impl_module
from vllm_launch.plugin.attention import settings
from vllm_launch.plugin.attention.builder import SinkBuilder
from vllm_launch.plugin.attention.formats import STATIC

PAGE, SCALE = 16, 64**-0.5
KV_DTYPES = {"bf16": "auto", "e4m3": "fp8", "int8": "int8_per_token_head", "int8-static": "fp8"}  # of each format


@dataclass(frozen=True)
class Setup:
    """A layer and its server."""

    window: int | None = None
    kv_dtype: str = "auto"
    heads: int = 16
    kv_heads: int = 2
    head_dim: int = 64
    max_model_len: int = 2048
    step_tokens: int = 1024
    requests: int = 8
    drafts: int = 0
    device: str = "cpu"

    def config(self) -> SimpleNamespace:
        """What the backend reads of vLLM's config."""
        text = SimpleNamespace(sliding_window=self.window, num_hidden_layers=1, num_key_value_heads=self.kv_heads)
        speculative = SimpleNamespace(num_speculative_tokens=self.drafts, parallel_drafting=False)
        return SimpleNamespace(
            speculative_config=speculative if self.drafts else None,
            parallel_config=SimpleNamespace(
                use_ubatching=False, rank=0, tensor_parallel_size=1, decode_context_parallel_size=1
            ),
            cache_config=SimpleNamespace(cache_dtype=self.kv_dtype),
            scheduler_config=SimpleNamespace(max_num_seqs=self.requests, max_num_batched_tokens=self.step_tokens),
            compilation_config=SimpleNamespace(max_cudagraph_capture_size=None, static_forward_context={}),
            model_config=SimpleNamespace(
                max_model_len=self.max_model_len,
                hf_text_config=text,
                model="no-such-model",
                revision=None,
                enable_sleep_mode=False,
            ),
        )


@dataclass
class Server:
    """One layer with its builder and cache."""

    setup: Setup
    impl: impl_module.SinkImpl
    builder: SinkBuilder
    layer: SimpleNamespace
    cache: torch.Tensor
    random: torch.Generator

    @property
    def page(self) -> int:
        """Tokens of a page."""
        return self.cache.shape[2]


def setup_of(monkeypatch, folder: Path, kv_format: str, window: int | None = None, **fields) -> Setup:
    """The setup of a server with this KV format; writes what int8-static needs to `folder`."""
    setup = Setup(window, KV_DTYPES[kv_format], **fields)
    if kv_format == "int8-static":
        k, v = uneven_scales(setup)
        use_scales(monkeypatch, folder, [k], [v])
    return setup


def uneven_scales(setup: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of int8-static for normal values: each K channel and V head has its own, and the least ones saturate."""
    random = torch.Generator().manual_seed(5)
    k = 2 + 6 * torch.rand(setup.kv_heads, setup.head_dim, generator=random)
    v = torch.linspace(3, 6, setup.kv_heads)
    return k / INT8_LARGEST, v / INT8_LARGEST


def use_scales(monkeypatch, folder: Path, k, v, of_config: bytes = b"{}") -> Path:
    """Serve with a scale file of these scales of each layer; returns the model's config."""
    config, path = folder / "config.json", folder / "scales.safetensors"
    config.write_bytes(b"{}")
    scale_files.write(path, of_config, k, v)
    monkeypatch.setenv(contract.KV_SCALES, str(path))
    if k[0].dim() == 2:
        monkeypatch.setenv(contract.KV_FORMAT, "int8")
    monkeypatch.setattr(settings, "config_path", lambda _: config)
    return config


def uploaded(values, dtype, device):
    return torch.tensor(values, dtype=dtype, device=device)


def dense_attention(
    q, k, v, out, *, cu_queries, cu_keys, longest_query, longest_key, sm_scale, causal, window_left, sinks, with_lse
):
    """What `flash_attention.fa3` computes, in fp64."""
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
    queries, keys = cu_queries.tolist(), cu_keys.tolist()
    assert max(b - a for a, b in pairwise(queries)) == longest_query
    assert max(b - a for a, b in pairwise(keys)) == longest_key
    for (first, end), (first_key, end_key) in zip(pairwise(queries), pairwise(keys), strict=True):
        position = torch.arange(end - first, device=q.device) + (end_key - first_key) - (end - first)
        out[first:end], lse[:, first:end] = attention(
            *(q[first:end], k[first_key:end_key], v[first_key:end_key]),
            position if causal else None,
            window_left=window_left,
            sinks=sinks,
            sm_scale=sm_scale,
        )
    return lse if with_lse else None


def attention(q, k, v, position, *, window_left, sinks, sm_scale):
    """Attention of one sequence in fp64: out [tokens, heads, dim], LSE [heads, tokens]. position: of each query."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * sm_scale
    if position is not None:
        key = torch.arange(len(k), device=q.device)
        seen = key <= position[:, None]
        if window_left >= 0:
            seen &= key >= position[:, None] - window_left
        scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)], -1)
    weights = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weights, v), scores.logsumexp(-1)


def make_impl(monkeypatch, setup: Setup, config=None, **arguments) -> impl_module.SinkImpl:
    """Make a layer's attention as vLLM does, under a made config."""
    monkeypatch.setattr(impl_module, "get_current_vllm_config", lambda: config or setup.config())
    sinks = torch.linspace(-2, 3, setup.heads, device=setup.device).bfloat16()
    defaults = {"sinks": torch.nn.Parameter(sinks, requires_grad=False)}
    positional = (setup.heads, setup.head_dim, SCALE, setup.kv_heads, None, setup.window, setup.kv_dtype)
    return impl_module.SinkImpl(*positional, None, "decoder", None, **defaults | arguments)


def serve(monkeypatch, setup: Setup, *, seed: int = 0, attention=None) -> Server:
    """Start one layer: profiling run, builder, and a cache of NaN, or of scales that are. attention: for prefills."""
    device, config = torch.device(setup.device, 0) if setup.device == "cuda" else torch.device("cpu"), setup.config()
    layer_impl = make_impl(monkeypatch, setup, config)
    if attention is not None or setup.device == "cpu":
        layer_impl.attention = attention or dense_attention
    layer_impl.process_weights_after_loading(torch.bfloat16)
    layer = SimpleNamespace(
        impl=layer_impl, **{f"_{x}_scale_float": 1.0 for x in "kv"}, **{f"_{x}_scale": torch.ones(()) for x in "kv"}
    )
    config.compilation_config.static_forward_context["model.layers.0.self_attn.attn"] = layer
    new = torch.randn(3, setup.heads, setup.head_dim, device=device).bfloat16()
    assert not layer_impl.forward(layer, new, None, None, None, None, torch.ones_like(new)).any()
    spec = SimpleNamespace(block_size=PAGE)
    builder = SinkBuilder(spec, ["model.layers.0.self_attn.attn"], config, device)
    cache = layer_impl.make_pages(setup.requests * (setup.max_model_len // PAGE) + 1, PAGE, device)
    poison(layer_impl, cache)
    if layer_impl.kv_format in STATIC:
        cache = cache.view(torch.uint8)  # as vLLM's
    return Server(setup, layer_impl, builder, layer, cache, torch.Generator(device).manual_seed(seed))


@dataclass
class Step:
    """A made step: its metadata, its new tokens, and what the attention must be."""

    metadata: object
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    expected: torch.Tensor
    tokens: int
    common: CommonAttentionMetadata


def make_step(
    server: Server,
    requests: list[tuple[int, int]],
    *,
    padded_tokens: int = 0,
    padded_requests: int = 0,
    unused_page: int = 2**30,
) -> Step:
    """Make a step of requests (query tokens, length): writes contexts and new tokens to the cache.

    Pages are random ones; the table holds `unused_page` beyond a request's pages and before its window. padded_tokens,
    padded_requests: the size of the step as vLLM pads it.
    """
    setup, device = server.setup, server.cache.device

    def draw(tokens: int, heads: int) -> torch.Tensor:
        size = (tokens, heads, setup.head_dim)
        return torch.randn(size, generator=server.random, device=device).bfloat16()

    queries, lengths = [q for q, _ in requests], [n for _, n in requests]
    tokens, rows = sum(queries), max(padded_requests, len(requests))
    count = max(padded_tokens, tokens)
    query, key, value = draw(count, setup.heads), draw(count, setup.kv_heads), draw(count, setup.kv_heads)
    page, width = server.page, -(-setup.max_model_len // 128) * 128 // server.page
    table = torch.full((rows, width), unused_page, dtype=torch.int32, device=device)
    pages = torch.randperm(len(server.cache) - 1, generator=server.random, device=device) + 1
    slots, expected, first, used = [], [], 0, 0
    starts = [0]
    for row, (new, length) in enumerate(requests):
        mine = pages[used : (used := used + -(-length // page))]
        position = torch.arange(length, device=device)
        slot = mine[position // page] * page + position % page
        new_tokens = slice(first, first + new)
        k, v = (
            torch.cat([draw(length - new, setup.kv_heads), key[new_tokens]]),
            torch.cat([draw(length - new, setup.kv_heads), value[new_tokens]]),
        )
        context = slice(0, length - new)
        if length > new:
            server.impl.do_kv_cache_update(server.layer, k[context], v[context], server.cache, slot[context])
        slots.append(slot[length - new :])
        skipped = 0 if setup.window is None else max(0, length - new - setup.window + 1) // page
        table[row, skipped : len(mine)] = mine[skipped:].int()
        expected.append((k, v, slot, new_tokens, length))
        first += new
        starts.append(first)
    slot_mapping = torch.cat([*slots, torch.full((count - tokens,), -1, device=device)])
    starts += [tokens] * (rows - len(requests))
    lengths_padded = lengths + [0] * (rows - len(requests))
    cpu_starts = torch.tensor(starts, dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=cpu_starts.to(device),
        query_start_loc_cpu=cpu_starts,
        seq_lens=uploaded(lengths_padded, torch.int32, device),
        num_reqs=rows,
        num_actual_tokens=count,
        max_query_len=max(queries),
        max_seq_len=max(lengths),
        block_table_tensor=table,
        slot_mapping=slot_mapping,
        seq_lens_cpu_upper_bound=torch.tensor(lengths_padded, dtype=torch.int32),
    )
    metadata = server.builder.build(0, common)
    server.impl.do_kv_cache_update(server.layer, key, value, server.cache, slot_mapping)
    out = torch.zeros(count, setup.heads, setup.head_dim, dtype=torch.float64, device=device)
    decoded = metadata.decodes.rows if metadata.decodes else 0
    for row, (k, v, slot, new_tokens, length) in enumerate(expected):
        context = length - (new_tokens.stop - new_tokens.start)
        for half, x in enumerate((k, v)):
            assert_stored(server.impl, server.cache, half, slot, x)
        cached = slot if row < decoded else slot[:context]  # a prefill's new keys are not rounded
        k, v = (
            torch.cat([stored(server.impl, server.cache, i, cached), x[len(cached) :].double()])
            for i, x in enumerate((k, v))
        )
        position = torch.arange(context, length, device=device)
        options = {"window_left": server.impl.window_left, "sinks": server.impl.sinks, "sm_scale": SCALE}
        out[new_tokens], _ = attention(query[new_tokens], k, v, position, **options)
    return Step(metadata, query, key, value, out, tokens, common)


def run(server: Server, step: Step) -> torch.Tensor:
    """Compute a step; output starts as NaN."""
    out = torch.full_like(step.query, torch.nan)
    server.impl.forward(server.layer, step.query, step.key, step.value, server.cache, step.metadata, out)
    return out


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """BF16 output against fp64, by the row's norm."""
    error = (out.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-3)
    assert error.max() < 1e-2, error.max()


def assert_mutant_fails(monkeypatch, server: Server, step: Step, mutate) -> None:
    """Assert that the step is right, and wrong with mutated views of the cache. mutate: Views to Views."""
    assert_close(run(server, step), step.expected)
    views = server.impl.views
    with monkeypatch.context() as patch:
        patch.setattr(server.impl, "views", lambda cache: mutate(views(cache)))
        out = run(server, step)
    with pytest.raises(AssertionError):
        assert_close(out, step.expected)
