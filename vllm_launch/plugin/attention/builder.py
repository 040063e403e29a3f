"""The metadata builder of a KV cache group: plans steps, and prepares the group's layers before the first one."""

import os

import torch
import vllm
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder

from vllm_launch.plugin.attention import (
    decode,
    decode_flashinfer,
    flash_attention,
    formats,
    prefill,
    record,
    scales,
    settings,
)
from vllm_launch.plugin.attention.impl import SinkImpl, SinkMetadata
from vllm_launch.plugin.attention.metadata import Decodes, Plan, plan_batch

TABLE_ALIGNMENT = 128  # tokens: vLLM rounds the width of its block tables up to it


class SinkBuilder(AttentionMetadataBuilder[SinkMetadata]):
    """Plans the steps of a KV cache group, and prepares its layers before the first one."""

    def __init__(self, kv_cache_spec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = vllm_config.compilation_config.static_forward_context
        self.impls = {name: layers[name].impl for name in layer_names}
        first = next(iter(self.impls.values()))
        self.limits = first.limits
        self._init_reorder_batch_threshold(self.limits.decode_tokens)
        self.windows = sorted({impl.window_left for impl in self.impls.values()})
        self.buffers = settings.allocate(vllm_config, self.limits, first.geometry, device)
        self.saturation = None
        self.widths: set[int] = set()  # of the block tables that kernels were loaded for
        self._install_scales(layers)
        self.wrappers = self._make_wrappers()
        longest = vllm_config.model_config.max_model_len
        self._prebuild(-(-longest // TABLE_ALIGNMENT) * TABLE_ALIGNMENT // kv_cache_spec.block_size)
        for window, impl in {impl.window_left: impl for impl in self.impls.values()}.items():
            flash_attention.warm_up(impl.attention, impl.num_heads, self.buffers.scratch, window)

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec) -> AttentionCGSupport:
        is_lowp = settings.requested_decoder(os.environ) == "lowp"
        return AttentionCGSupport.UNIFORM_BATCH if is_lowp else AttentionCGSupport.NEVER

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False) -> SinkMetadata:
        """Plan a step. Reads lengths of the host only; tables and lengths of the device keep their addresses."""
        common = common_attn_metadata
        if common_prefix_len or common.causal is not True:
            raise NotImplementedError("fp8-sinks: cascade attention and non-causal attention are not supported")
        if self.saturation is not None:
            self.saturation.poll()
        if (width := common.block_table_tensor.shape[1]) not in self.widths:
            self._prebuild(width)
        plan = self._plan(common)
        return SinkMetadata(
            tokens=plan.tokens,
            decodes=plan.decodes,
            padded=decode.upload_padding(plan.decodes, self.device),
            prefills={window: prefill.upload(groups, self.device) for window, groups in plan.prefills.items()},
            block_table=common.block_table_tensor,
            seq_lens=common.seq_lens,
            slot_mapping=common.slot_mapping,
            buffers=self.buffers,
            wrappers=self._plan_wrappers(common, plan.decodes),
        )

    def _plan(self, common) -> Plan:
        starts = common.query_start_loc_cpu
        if common.max_query_len == 1:  # one token each, as in most steps
            tokens = int(starts[common.num_reqs])
            return Plan(tokens, Decodes(tokens, 1) if tokens else None, {})
        return plan_batch(
            starts[: common.num_reqs + 1].diff().tolist(),
            common.seq_lens_cpu_upper_bound[: common.num_reqs].tolist(),
            most_decode_tokens=self.limits.decode_tokens,
            windows=self.windows,
            scratch_rows=self.buffers.scratch.shape[1],
        )

    def _make_wrappers(self) -> dict[int, decode_flashinfer.Wrapper]:
        """Make the wrappers of decoder flashinfer, by window_left, and plan once, which compiles; none for another."""
        if next(iter(self.impls.values())).decoder != "flashinfer":
            return {}
        for impl in self.impls.values():
            impl.number_scales = tuple(map(decode_flashinfer.tensor_scale, impl.kv_scales))
        wrappers = {window: decode_flashinfer.make_wrapper(self.device) for window in self.windows}
        self._plan_each(wrappers, [1], torch.zeros(1, 1, dtype=torch.int32, device=self.device))
        return wrappers

    def _plan_wrappers(self, common, decodes: Decodes | None) -> dict[int, decode_flashinfer.Wrapper]:
        """Plan the wrappers for the decodes of a step; none without any."""
        if not self.wrappers or decodes is None:
            return {}
        lengths = common.seq_lens_cpu_upper_bound[: decodes.rows].tolist()  # exact without drafts
        self._plan_each(self.wrappers, lengths, common.block_table_tensor)
        return self.wrappers

    def _plan_each(self, wrappers, lengths: list[int], block_table: torch.Tensor) -> None:
        for impl in {impl.window_left: impl for impl in self.impls.values()}.values():
            decode_flashinfer.plan(
                wrappers[impl.window_left],
                lengths,
                block_table,
                impl.geometry,
                self.kv_cache_spec.block_size,
                kv_dtype=impl.storage_dtype,
                window_left=impl.window_left,
                sm_scale=impl.scale,
            )

    def _install_scales(self, layers) -> None:
        """Give the layers their scales and the count of saturated values, and publish what was resolved."""
        impls = [layer.impl for layer in layers.values() if isinstance(getattr(layer, "impl", None), SinkImpl)]
        scales.require_static(os.environ, {impl.kv_format for impl in impls})
        heads, config = settings.heads_of(self.vllm_config), settings.config_path(self.vllm_config.model_config)
        from_file = scales.load_scales(os.environ, heads, config, self.device)
        for name, impl in self.impls.items():
            if impl.kv_format in formats.STATIC:
                self.saturation = scales.saturation(self.device)
                impl.saturated = self.saturation.counts
                if from_file.sha256:
                    impl.kv_scales = from_file.layers[scales.layer_number(name)]
                else:
                    impl.kv_scales = scales.checkpoint_scales(layers[name])
        if self.vllm_config.parallel_config.rank == 0:
            record.publish(_record(impls, from_file.sha256, self.device), os.environ)

    def _prebuild(self, width: int) -> None:
        """Load every kernel that a step can need, of tables of `width` pages: none compiles in a step or a capture."""
        page, device = self.kv_cache_spec.block_size, self.device
        table = torch.zeros(1, width, dtype=torch.int32, device=device)
        lengths = torch.zeros(1, dtype=torch.int32, device=device)
        nowhere = torch.full((1,), -1, dtype=torch.int64, device=device)
        for impl in {(impl.window_left, impl.kv_format): impl for impl in self.impls.values()}.values():
            pages = impl.make_pages(1, page, device)
            cache = decode.Cache(*impl.views(pages), table, lengths)
            batch, tokens = self.limits.requests, self.limits.decode_tokens
            if impl.decoder == "lowp":
                decode.prebuild(batch, tokens, impl.num_heads, cache, window_left=impl.window_left)
            prefill.warm_up(cache, self.buffers.scratch)
            new = torch.zeros(1, impl.num_kv_heads, impl.head_size, dtype=torch.bfloat16, device=device)
            impl.do_kv_cache_update(None, new, new, pages, nowhere)
        self.widths.add(width)


def _record(impls: list[SinkImpl], kv_scales: str | None, device: torch.device) -> record.Record:
    window = [impl for impl in impls if impl.window_left >= 0]
    full = [impl for impl in impls if impl.window_left < 0] or window
    return record.Record(
        decoder=full[0].decoder,
        prefill=full[0].attention.__name__,
        cache_writer="fp8-sinks",
        kv_format=full[0].kv_format,
        window_kv_format=(window or full)[0].kv_format,
        kv_scales=kv_scales,
        vllm=vllm.__version__,
        layers=len(impls),
        window_layers=len(window),
        capability=".".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else "cpu",
    )
