"""The widened cache, FP8 or int8, against FP64 attention on the stored values, through vLLM's own kernel for BF16."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

ops = pytest.importorskip("vllm._custom_ops", reason="vLLM for the CPU is not installed")
from vllm.platforms import current_platform  # noqa: E402

if not current_platform.is_cpu():
    pytest.skip("vLLM here is not the CPU build", allow_module_level=True)
current_platform.import_kernels()

from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # noqa: E402

from vllm_launch import plugin  # noqa: E402
from vllm_launch.plugin import cpu_storage, cpu_widen  # noqa: E402
from vllm_launch.plugin.attention import formats  # noqa: E402
from vllm_launch.plugin.attention.formats import views  # noqa: E402
from vllm_launch.plugin.attention.scales import HeadScales  # noqa: E402
from vllm_launch.plugin.cpu_storage import Fp8, StaticInt8, TokenInt8, to_fp8, widen  # noqa: E402
from vllm_launch.plugin.cpu_storage import _tokens as tokens_of  # noqa: E402
from vllm_launch.plugin.cpu_widen import WideningBuilder, WideningCpuImpl, plan_scratch  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM, BLOCK, PAGES, WINDOW = 16, 2, 64, 128, 64, 128
# The window of the one with 255 begins with the last token of a page.
SEQ_LENS, QUERY_LENS = [300, 1000, 1, 129, 640, 257, 255], [1, 301, 1, 129, 1, 2, 1]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
NAN_CODE = 0x7F  # of both FP8 formats; in int8 the largest code
NAN_SCALE = 0xFF  # in each byte of an fp32 number
ERROR = 6e-3  # relative, of BF16 arithmetic
CHANNELS = 2.0 ** torch.linspace(-1, 0.5, HEAD_DIM)  # magnitudes of K
STATIC = StaticInt8(
    (
        HeadScales(torch.ones(KV_HEADS, HEAD_DIM), torch.ones(KV_HEADS)),
        HeadScales(CHANNELS * torch.tensor([[0.03], [0.04]]), torch.tensor([0.03, 0.04])),
    )
)
FP8, INT8 = Fp8(E4M3), [TokenInt8(), STATIC]


def rounded(x: torch.Tensor, storage, index: int, scale: float) -> torch.Tensor:
    """What a storage holds of K (index 0) or V, in FP64. scale: of FP8."""
    if isinstance(storage, Fp8):
        return to_fp8(x, scale, storage.dtype).double() * scale
    if isinstance(storage, TokenInt8):
        scales = x.float().abs().amax(-1, keepdim=True) / 127
    else:
        scales = (storage.layers[1].k, storage.layers[1].v[:, None])[index]
    return (x.double() / scales).round().clamp(-127, 127) * scales


class Batch:
    """Decode and prefill in one batch over a cache whose unwritten bytes are poison; the pages are in no order.

    texts: each request's K and V as stored, [tokens, kv_heads, head_dim] in FP64. exact: before they are stored.
    """

    def __init__(self, storage=FP8, scales=(1.0, 1.0), window=-1, sinks=None, padding=0):
        torch.manual_seed(0)
        self.window = window
        self.sinks = torch.randn(HEADS).bfloat16() + 4 if sinks is None else torch.full((HEADS,), sinks).bfloat16()
        isa = _get_attn_isa(torch.bfloat16, BLOCK, HEAD_DIM)
        self.layer = SimpleNamespace(
            _k_scale_float=scales[0], _v_scale_float=scales[1], isa=isa, layer_name="model.layers.1.self_attn.attn"
        )
        self.impl = object.__new__(WideningCpuImpl)
        vars(self.impl).update(
            storage=storage, kv_cache_dtype="auto", attn_type="decoder", sinks=self.sinks, scale=HEAD_DIM**-0.5,
            alibi_slopes=None, sliding_window=window, logits_soft_cap=0, use_zentorch_sdpa=False,
        )  # fmt: skip
        poison = NAN_SCALE if isinstance(storage, TokenInt8) else NAN_CODE
        self.cache = empty_cache(storage, PAGES, poison, padding)
        free = iter((torch.randperm(PAGES - 1) + 1).tolist())  # page 0 is vLLM's null page
        self.table = torch.zeros(len(SEQ_LENS), max(SEQ_LENS) // BLOCK + 2, dtype=torch.int32)
        self.texts, self.exact = [], []
        for row, tokens in zip(self.table, SEQ_LENS, strict=True):
            row[: math.ceil(tokens / BLOCK)] = torch.tensor([next(free) for _ in range(math.ceil(tokens / BLOCK))])
            key, value = (torch.randn(tokens, KV_HEADS, HEAD_DIM) for _ in range(2))
            key_value = [(key * CHANNELS).bfloat16(), value.bfloat16()]
            position = torch.arange(tokens)
            self.impl.do_kv_cache_update(
                self.layer, *key_value, self.cache, row[position // BLOCK].long() * BLOCK + position % BLOCK
            )
            self.exact.append([x.double() for x in key_value])
            pairs = enumerate(zip(key_value, scales, strict=True))
            self.texts.append([rounded(x, storage, index, scale) for index, (x, scale) in pairs])
        self.starts = torch.tensor([0, *itertools.accumulate(QUERY_LENS)], dtype=torch.int32)
        self.query = torch.randn(int(self.starts[-1]), HEADS, HEAD_DIM).bfloat16()

    def metadata(self):
        """The metadata that our builder makes of the batch."""
        builder = object.__new__(WideningBuilder)
        vars(builder).update(
            num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=torch.bfloat16, block_size=BLOCK,
            window_size=self.window, isa=self.layer.isa, kv_cache_dtype="auto", is_cross_attention=False,
            is_encoder_only_attention=False, kv_cache_spec=SimpleNamespace(dtype=self.cache.dtype),
        )  # fmt: skip
        common = SimpleNamespace(
            num_reqs=len(SEQ_LENS), num_actual_tokens=len(self.query), max_query_len=max(QUERY_LENS),
            max_seq_len=max(SEQ_LENS), query_start_loc=self.starts, causal=True, block_table_tensor=self.table,
            seq_lens=torch.tensor(SEQ_LENS, dtype=torch.int32), slot_mapping=None,
        )  # fmt: skip
        return builder.build(0, common)

    def error(self) -> float:
        """The largest relative error of a query token's output; of prefills, only some tokens are compared."""
        out = torch.full_like(self.query, float("nan"))
        self.impl.forward(self.layer, self.query, None, None, self.cache, self.metadata(), out)
        errors = []
        for start, tokens, queries, text in zip(
            self.starts[:-1].tolist(), SEQ_LENS, QUERY_LENS, self.texts, strict=True
        ):
            for i in {*range(0, queries, 37), queries - 1}:
                right = self.attention(self.query[start + i], text, tokens - queries + i + 1)
                errors.append(((out[start + i].double() - right).norm() / right.norm()).item())
        return max(errors, key=lambda value: math.inf if math.isnan(value) else value)

    def attention(self, query, text, end):
        """One token's attention in FP64 over the stored values before `end`."""
        seen = slice(0 if self.window < 0 else max(0, end - self.window), end)
        key, value = (x[seen].repeat_interleave(HEADS // KV_HEADS, 1) for x in text)
        scores = torch.einsum("hd,khd->hk", query.double(), key) * HEAD_DIM**-0.5
        weights = torch.cat([scores, self.sinks.double()[:, None]], -1).softmax(-1)[:, :-1]
        return torch.einsum("hk,khd->hd", weights, value)


def empty_cache(storage, pages: int, byte: int, padding: int = 0) -> torch.Tensor:
    """A layer's cache as vLLM shapes it, each byte `byte`; pages `padding` bytes apart."""
    width = 2 * (HEAD_DIM + 4) if isinstance(storage, TokenInt8) else 2 * HEAD_DIM
    size = KV_HEADS * BLOCK * width
    memory = torch.full((pages, size + padding), byte, dtype=torch.uint8)[:, :size]
    cache = memory.view(pages, KV_HEADS, BLOCK, width)
    return cache.view(torch.int8) if isinstance(storage, TokenInt8) else cache


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fp8", [E4M3, E5M2])
def test_every_code_widens_to_its_value_and_nan_to_nan(fp8, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    values = widen(codes.view(2, 128), fp8, dtype, 0.5).flatten()
    assert torch.equal(values.nan_to_num(7), (codes.view(fp8).float() * 0.5).to(dtype).nan_to_num(7))
    assert values[NAN_CODE].isnan()


@pytest.mark.parametrize("window", [-1, WINDOW])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("fp8", [E4M3, E5M2])
def test_a_ragged_batch_over_poisoned_pages(fp8, scales, window):
    assert Batch(Fp8(fp8), scales, window).error() < ERROR


@pytest.mark.parametrize("padding", [0, 256], ids=["dense", "padded"])
@pytest.mark.parametrize("window", [-1, WINDOW])
@pytest.mark.parametrize("storage", INT8, ids=lambda storage: storage.name)
def test_a_ragged_batch_over_poisoned_pages_of_int8(storage, window, padding):
    assert Batch(storage, window=window, padding=padding).error() < ERROR


@pytest.mark.parametrize("storage", [FP8, *INT8], ids=lambda storage: storage.name)
@pytest.mark.parametrize("sinks", [-1e4, 0.0, 12.0])
def test_extreme_sinks(sinks, storage):
    """No sink at all, one of an average key's weight, one that takes nearly all the weight."""
    assert Batch(storage, sinks=sinks).error() < ERROR


def test_a_nan_that_was_stored_comes_out():
    batch = Batch()
    batch.cache[batch.table[0, 0]] = NAN_CODE
    assert math.isnan(batch.error())


def shifted_pages(table, *lengths):
    scratch, over = plan_scratch(table, *lengths)
    return scratch, over.roll(1, dims=1)


def late_window(table, seq_lens, query_lens, block, window):
    return plan_scratch(table, seq_lens, query_lens, block, window - 1)


@pytest.mark.parametrize(
    ("window", "module", "name", "mutant"),
    [
        (-1, cpu_widen, "plan_scratch", shifted_pages),
        (WINDOW, cpu_widen, "plan_scratch", late_window),
        (-1, cpu_storage, "widen", lambda codes, fp8, dtype, scale: widen(codes, fp8, dtype, 1.0)),
        (-1, cpu_storage, "widen", lambda codes, fp8, dtype, scale: widen(codes, E5M2, dtype, scale)),
        (-1, cpu_storage, "to_fp8", lambda x, scale, fp8: to_fp8(x, scale * 1.5, fp8)),
    ],
    ids=["pages shifted", "window too short", "scale lost", "other format", "written at another scale"],
)
def test_a_mutant_is_seen(monkeypatch, window, module, name, mutant):
    monkeypatch.setattr(module, name, mutant)
    assert not Batch(scales=(0.5, 0.25), window=window).error() < 2 * ERROR


def swapped_views(*arguments):
    k, v, k_scale, v_scale = views(*arguments)
    return k, v, v_scale, k_scale


@pytest.mark.parametrize(
    ("storage", "name", "mutant"),
    [
        (TokenInt8(), "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, 2), dtype)),
        (TokenInt8(), "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, 1), dtype)),
        (TokenInt8(), "views", swapped_views),
        (TokenInt8(), "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale * 1.02, dtype)),
        (STATIC, "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.amax(-1, keepdim=True), dtype)),
        (STATIC, "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, 0), dtype)),
        (STATIC, "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, -1), dtype)),
    ],
    ids=["next token", "next head", "K and V swapped", "2% off", "per head for per channel", "other head", "channel"],
)
def test_a_mutant_that_reads_int8_with_other_scales_is_seen(monkeypatch, storage, name, mutant):
    batch = Batch(storage)
    monkeypatch.setattr(formats if name == "views" else cpu_storage, name, mutant)
    assert not batch.error() < 2 * ERROR


def test_scales_of_another_layer_are_seen():
    batch = Batch(STATIC)
    batch.layer.layer_name = "model.layers.0.self_attn.attn"
    assert not batch.error() < 2 * ERROR


def test_int8_is_several_times_finer_than_fp8():
    """The error of attention against the values before they are stored."""
    errors = {}
    for storage in (FP8, *INT8):
        batch = Batch(storage)
        batch.texts = batch.exact
        errors[storage.name] = batch.error()
    assert errors["int8"] < 0.35 * errors["e4m3"] and errors["int8-static"] < 0.5 * errors["e4m3"], errors


@pytest.mark.parametrize("change", [lambda sinks: None, lambda sinks: sinks.roll(1)], ids=["dropped", "shifted"])
def test_wrong_sinks_are_seen(change):
    batch = Batch()
    batch.impl.sinks = change(batch.sinks)
    assert batch.error() > 2 * ERROR


def test_only_the_pages_in_a_window_are_read_once_and_no_more():
    table = torch.tensor([[5, 6, 7, 8, 0], [5, 9, 0, 0, 0]], dtype=torch.int32)  # page 5: a shared prefix
    seq_lens, query_lens = torch.tensor([449, 200], dtype=torch.int32), torch.tensor([1, 100], dtype=torch.int32)
    scratch, over = plan_scratch(table, seq_lens, query_lens, BLOCK, WINDOW)
    assert scratch.pages.tolist() == [0, 5, 7, 8, 9]
    assert over.tolist() == [[0, 0, 2, 3], [1, 4, 0, 0]]
    assert (scratch.slots.view(-1, BLOCK) >= 0).sum(1).tolist() == [0, 128, 128, 65, 72]
    all_pages, _ = plan_scratch(table, seq_lens, query_lens, BLOCK, -1)
    assert all_pages.pages.tolist() == [0, 5, 6, 7, 8, 9]


def test_the_cache_holds_the_rounded_codes_and_padding_is_not_written():
    batch = Batch()
    key, value = (torch.randn(3, KV_HEADS, HEAD_DIM).bfloat16() * 300 for _ in range(2))
    cache = empty_cache(batch.impl.storage, 2, 0)
    batch.impl.do_kv_cache_update(batch.layer, key, value, cache, torch.tensor([BLOCK + 7, -1]))
    stored = cache.view(2, BLOCK, 2, KV_HEADS, HEAD_DIM)[1, 7].view(E4M3).float()
    right = torch.stack([key[0], value[0]]).float().clamp(-448, 448).to(E4M3).float()
    assert torch.equal(stored, right) and right.abs().max() == 448
    cache.view(2, BLOCK, 2, KV_HEADS, HEAD_DIM)[1, 7] = 0
    assert not cache.any()


@pytest.mark.parametrize("storage", INT8, ids=lambda storage: storage.name)
def test_the_codes_and_scales_of_int8_lie_as_in_a_page_of_a_gpu(storage):
    """A page: lines [kv_heads, page, K and V], then fp32 scales [K and V, kv_heads, page]; padding is not written."""
    batch = Batch(storage)
    key, value = (torch.randn(3, KV_HEADS, HEAD_DIM).bfloat16() for _ in range(2))
    cache = empty_cache(storage, 2, 0)
    batch.impl.do_kv_cache_update(batch.layer, key, value, cache, torch.tensor([BLOCK + 7, -1]))
    page = cache[1].flatten().view(torch.int8).clone()
    lines = page[: KV_HEADS * BLOCK * 2 * HEAD_DIM].view(KV_HEADS, BLOCK, 2, HEAD_DIM)
    scales = page[lines.numel() :].view(torch.float32).view(-1, KV_HEADS, BLOCK)
    for index, x in enumerate((key[0], value[0])):
        if isinstance(storage, TokenInt8):
            scale = x.float().abs().amax(-1) / 127
            assert torch.equal(scales[index, :, 7], scale)
            scale = scale[:, None]
        else:
            scale = (storage.layers[1].k, storage.layers[1].v[:, None])[index]
        assert torch.equal(lines[:, 7, index], (x.float() / scale).round().clamp(-127, 127).to(torch.int8))
    lines[:, 7] = 0
    scales[:, :, 7] = 0
    assert not page.any() and not cache[0].any()


@pytest.mark.parametrize(
    ("setting", "avx512", "amx", "chosen"),
    [
        (None, True, False, "native"),
        (None, False, True, "native"),
        (None, False, False, "widened"),
        ("", False, False, "widened"),
        ("widened", True, True, "widened"),
        ("native", False, False, "native"),
    ],
)
def test_which_attention_is_chosen(monkeypatch, setting, avx512, amx, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.delenv(plugin.CPU_ATTENTION, raising=False)
    if setting is not None:
        monkeypatch.setenv(plugin.CPU_ATTENTION, setting)
    assert plugin.cpu_attention() == chosen


def test_another_attention_is_refused(monkeypatch):
    monkeypatch.setenv(plugin.CPU_ATTENTION, "fast")
    with pytest.raises(ValueError, match="FP8_SINKS_CPU_ATTENTION=fast: expected native or widened"):
        plugin.cpu_attention()
