"""What a server was started with, read from vLLM's config and the environment, and what of it is refused."""

from collections.abc import Mapping
from pathlib import Path

import torch
from vllm.config import VllmConfig

from vllm_launch import certificate
from vllm_launch.decoder.contract import CERTIFYING, DECODER, DECODERS
from vllm_launch.plugin.attention import buffers
from vllm_launch.plugin.attention.buffers import Buffers, Geometry, Limits, scratch_rows
from vllm_launch.plugin.attention.decode import MOST_QUERY_TOKENS
from vllm_launch.plugin.attention.scales import Heads


def limits_of(config: VllmConfig) -> Limits:
    """Return what the server was started with."""
    scheduler = config.scheduler_config
    return Limits(
        requests=max(scheduler.max_num_seqs, config.compilation_config.max_cudagraph_capture_size or 0),
        step_tokens=scheduler.max_num_batched_tokens,
        request_tokens=config.model_config.max_model_len,
        decode_tokens=1 + _drafts(config),
    )


def requested_decoder(environment: Mapping[str, str]) -> str:
    """Return the decoder that DECODER names, lowp if unset. Raises ValueError for another name."""
    name = environment.get(DECODER) or "lowp"
    if name not in DECODERS:
        raise ValueError(f"{DECODER}={name}: expected {' or '.join(DECODERS)}")
    return name


def allocate(config: VllmConfig, limits: Limits, geometry: Geometry, device: torch.device) -> Buffers:
    """Allocate the buffers of a server; the same call returns the same ones.

    limits: as the layers have them: vLLM may lower max_model_len between its profiling run and the builders.
    """
    window = getattr(config.model_config.hf_text_config, "sliding_window", None) or 0
    return buffers.allocate(limits, geometry, scratch_rows(limits, geometry, window - 1), device)


def config_path(model_config) -> Path | None:
    """Return the served model's config.json: in its folder, or in Hugging Face's cache; None if it is in neither."""
    folder = Path(model_config.model)
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model_config.model, "config.json", revision=model_config.revision)
    return Path(cached) if isinstance(cached, str) else None


def unsupported(config: VllmConfig, decoder: str) -> dict[str, bool]:
    """Settings of a server that are refused, and whether they are in use."""
    speculative, drafts = config.speculative_config, _drafts(config)
    return {
        "microbatches (dual batch overlap)": config.parallel_config.use_ubatching,
        "sleep mode, which discards the KV scales": config.model_config.enable_sleep_mode,
        "--calculate-kv-scales": bool(getattr(config.cache_config, "calculate_kv_scales", False)),
        f"{drafts} drafts (up to {MOST_QUERY_TOKENS - 1} are)": drafts >= MOST_QUERY_TOKENS,
        "drafts with decoder flashinfer": drafts > 0 and decoder == "flashinfer",
        "parallel drafting": bool(getattr(speculative, "parallel_drafting", False)),
    }


def uncertified_reason(major: int, environment: Mapping[str, str]) -> str | None:
    """Return why decoders are refused on a GPU of this capability; None on SM90, and with a valid certificate."""
    if major == 9 or environment.get(CERTIFYING):
        return None
    status = certificate.read()
    if status.state == "valid":
        return None
    message = f"fp8-sinks is tested on SM90, and this GPU has no valid certificate ({status.reason})"
    return f"{message}: run {certificate.COMMAND}"


def refuse(settings: dict[str, bool]) -> None:
    """Raise NotImplementedError if one of these settings is in use."""
    refused = [setting for setting, is_used in settings.items() if is_used]
    if refused:
        raise NotImplementedError(f"attention backend of fp8-sinks: not supported: {'; '.join(refused)}")


def heads_of(config: VllmConfig) -> Heads:
    """Return the model's layers and KV heads, and this process's tensor-parallel rank."""
    text, rank, ranks = config.model_config.hf_text_config, 0, config.parallel_config.tensor_parallel_size
    if ranks > 1:
        from vllm.distributed.parallel_state import get_tp_group

        rank = get_tp_group().rank_in_group
    return Heads(text.num_hidden_layers, text.num_key_value_heads, rank, ranks)


def _drafts(config: VllmConfig) -> int:
    return getattr(config.speculative_config, "num_speculative_tokens", None) or 0
