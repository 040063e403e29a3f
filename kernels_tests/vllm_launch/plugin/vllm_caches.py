"""KV caches as a real vLLM plans, allocates and views them for the layers of a config, on a CPU.

Takes 0.26, 0.33, and the installed version between them.
"""

from typing import NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends import utils as backend_utils
from vllm.v1.core import kv_cache_utils
from vllm.v1.worker.gpu import attn_utils

MEMORY_BYTES = 24 * 2**20


class LayerCache(NamedTuple):
    """A layer's cache, builder, and the spec by which vLLM budgets its pages."""

    cache: torch.Tensor
    builder: object
    spec: object


def allocate(config: VllmConfig) -> tuple[dict[str, LayerCache], int]:
    """Do what the engine core and a worker with the V2 runner do with a loaded model.

    Returns the cache of each layer, and vLLM's capacity in tokens.
    """
    current_platform.update_block_size_for_backend(config)
    device, specs = torch.device("cpu"), attn_utils.get_kv_cache_spec(config)
    plan = make_plan(config, specs)
    by_cache_group, _, pages = attn_utils.init_attn_backend(plan, config, device)
    groups = [group for cache_group in by_cache_group for group in cache_group]
    layers = config.compilation_config.static_forward_context
    if hasattr(backend_utils, "resolve_kv_cache_layout"):
        caches = attn_utils.init_kv_cache(layers, plan, device, pages, config, attn_groups=groups)
    else:
        dtype = config.cache_config.cache_dtype
        caches = attn_utils.init_kv_cache([], layers, plan, by_cache_group, device, dtype, pages, config)
    allocated = {
        name: LayerCache(caches[name], group.get_metadata_builder(0), group.kv_cache_spec)
        for group in groups
        for name in group.layer_names
    }
    return allocated, kv_cache_utils.get_kv_cache_capacity(config, plan)[0]


def make_plan(config: VllmConfig, specs: dict):
    """Return vLLM's KVCacheConfig for MEMORY_BYTES, with its layout resolved."""
    if hasattr(backend_utils, "resolve_kv_cache_layout"):
        layers = config.compilation_config.static_forward_context.values()
        layouts = backend_utils.get_supported_kv_cache_layouts({layer.get_attn_backend() for layer in layers})
        backend_utils.resolve_kv_cache_layout(config, [[layout.name for layout in layouts]], list(specs.values()))
    arguments = (config, [specs], [MEMORY_BYTES])
    if hasattr(kv_cache_utils, "get_kv_cache_configs"):
        return kv_cache_utils.get_kv_cache_configs(*arguments)[0]
    from vllm.v1.core import kv_cache_planning

    groups = kv_cache_planning.get_global_kv_cache_groups(config, [specs])
    return kv_cache_planning.get_kv_cache_configs(*arguments, groups)[0]
