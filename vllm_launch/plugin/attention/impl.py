"""The attention of a layer: writes the cache, then computes a planned step."""

import functools
import os
from dataclasses import dataclass

import torch
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadata, AttentionType

from lowp.cache_write import cache_write
from vllm_launch.decoder.contract import KV_CACHE_DTYPES
from vllm_launch.plugin.attention import decode, decode_flashinfer, flash_attention, formats, prefill, settings
from vllm_launch.plugin.attention.buffers import Buffers, Geometry
from vllm_launch.plugin.attention.metadata import Decodes
from vllm_launch.plugin.attention.scales import HeadScales


@dataclass
class SinkMetadata(AttentionMetadata):
    """A step of a KV cache group. tokens: of all requests, without padding.

    prefills, and the planned wrappers of decoder flashinfer: by window_left.
    """

    tokens: int
    decodes: Decodes | None
    padded: decode.PaddedQueries | None
    prefills: dict[int, tuple[tuple[prefill.Call, ...], ...]]
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    slot_mapping: torch.Tensor
    buffers: Buffers
    wrappers: dict[int, decode_flashinfer.Wrapper]


class SinkImpl(AttentionImpl):
    """A layer's attention."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **extra_arguments,
    ):
        config, decoder = get_current_vllm_config(), settings.requested_decoder(os.environ)
        settings.refuse(
            {
                "ALiBi": alibi_slopes is not None,
                "logit soft capping": bool(logits_soft_cap),
                f"attention type {attn_type}": attn_type != AttentionType.DECODER,
                "KV sharing between layers": kv_sharing_target_layer_name is not None,
                "decode context parallelism": self.dcp_world_size > 1,
                "prefill context parallelism": self.pcp_world_size > 1,
                "a model without sinks": sinks is None,
                f"KV cache dtype {kv_cache_dtype}": kv_cache_dtype not in KV_CACHE_DTYPES,
                **{f"the model's argument {name}": value is not None for name, value in extra_arguments.items()},
                **settings.unsupported(config, decoder),
            }
        )
        formats.check(config.cache_config.cache_dtype, decoder, os.environ)
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.scale = float(scale)
        self.sliding_window = sliding_window
        self.window_left = -1 if sliding_window is None else sliding_window - 1
        self.kv_cache_dtype = kv_cache_dtype
        self.decoder = decoder
        self.config = config
        self.limits = settings.limits_of(config)
        self.kv_format = formats.layer_format(kv_cache_dtype, os.environ)
        self.sinks = sinks
        self.fp32_sinks = torch.empty(num_heads, dtype=torch.float32, device=sinks.device)
        self.kv_scales = HeadScales()
        self.number_scales = (1.0, 1.0)  # those of decoder flashinfer
        self.saturated: torch.Tensor | None = None
        self.has_reserved = False

    @functools.cached_property
    def attention(self) -> flash_attention.Attention:
        """What computes the prefills."""
        return flash_attention.choose(self.sinks.device)

    @property
    def storage_dtype(self) -> torch.dtype:
        return formats.STORAGE[self.kv_format]

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.num_heads, self.num_kv_heads, self.head_size)

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Convert the sinks to what the decode kernel takes; into the same memory again after a reload."""
        self.fp32_sinks.copy_(self.sinks.detach())

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping) -> None:
        """Write K and V of new tokens, [tokens, kv_heads, head_dim], to their slots."""
        views = self.views(kv_cache)
        cache_write(
            key,
            value,
            views.k,
            views.v,
            slot_mapping,
            k_scale=views.k_scale,
            v_scale=views.v_scale,
            layout="HND",
            saturated=self.saturated,
        )

    def forward(
        self,
        layer,
        query,
        key,
        value,
        kv_cache,
        attn_metadata,
        output,
        output_scale=None,
        output_block_scale=None,
    ) -> torch.Tensor:
        """Write the attention of a step's tokens to `output`; query, output: [tokens, heads, head_dim]."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("fp8-sinks: quantised attention output is not supported")
        if attn_metadata is None:  # the profiling run, and others without requests
            self.reserve(query.device)
            return output.zero_()
        step: SinkMetadata = attn_metadata
        cache = decode.Cache(*self.views(kv_cache), step.block_table, step.seq_lens)
        options = {"sm_scale": self.scale, "window_left": self.window_left}
        if step.wrappers:
            wrapper, rows = step.wrappers[self.window_left], step.decodes.rows
            decode_flashinfer.attend(wrapper, query, cache, self.fp32_sinks, output, rows, self.number_scales)
        elif step.decodes is not None:
            workspace = step.buffers.workspace
            decode.attend(
                query, cache, self.fp32_sinks, output, step.decodes, step.padded, workspace=workspace, **options
            )
        if step.prefills:
            prefill.attend(
                prefill.Tokens(query, key, value),
                cache,
                self.sinks,
                output,
                step.prefills[self.window_left],
                scratch=step.buffers.scratch,
                attention=self.attention,
                **options,
            )
        if step.tokens < len(output):
            output[step.tokens :].zero_()
        return output

    def views(self, kv_cache: torch.Tensor) -> formats.Views:
        """View K and V of a cache, [pages, kv_heads, page, head_dim], and the scales that apply to them."""
        views = formats.views(kv_cache, self.kv_format, self.head_size)
        if self.kv_format == "int8":
            return views
        return views._replace(k_scale=self.kv_scales.k, v_scale=self.kv_scales.v)

    def make_pages(self, pages: int, page: int, device: torch.device) -> torch.Tensor:
        """Make a cache of zeros, as vLLM makes a layer's."""
        line = formats.line_size(self.head_size, with_scales=self.kv_format == "int8")
        return torch.zeros((pages, self.num_kv_heads, page, line), dtype=self.storage_dtype, device=device)

    def reserve(self, device: torch.device) -> None:
        """Allocate what all steps share, and what merging takes if a request can need it; at the first call only."""
        if self.has_reserved:
            return
        self.has_reserved = True
        allocated = settings.allocate(self.config, self.limits, self.geometry, device)
        if self.decoder == "flashinfer":
            decode_flashinfer.workspace(device)
        if allocated.scratch.shape[1] < self.limits.request_tokens:
            prefill.reserve(self.num_heads, self.head_size, self.limits.step_tokens, device)
