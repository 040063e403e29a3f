"""A batch over a widened cache, FP8 or int8, and its attention in FP64 over the stored values.

Skips the module that imports it where vLLM is not the CPU build.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm._custom_ops", reason="vLLM for the CPU is not installed")
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("vLLM here is not the CPU build", allow_module_level=True)
current_platform.import_kernels()

from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # noqa: E402

from vllm_launch.plugin.attention.scales import HeadScales  # noqa: E402
from vllm_launch.plugin.cpu_storage import Fp8, StaticInt8, TokenInt8, to_fp8  # noqa: E402
from vllm_launch.plugin.cpu_widen import WideningBuilder, WideningCpuImpl  # noqa: E402

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
