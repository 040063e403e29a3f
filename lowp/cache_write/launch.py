"""From a checked call and the device to a build of the kernel, its grid and its parameters."""

import torch

from lowp.cache_write import build
from lowp.cache_write.build import Variant
from lowp.cache_write.call import Call
from lowp.cache_write.params import params_of
from lowp.jit import launcher
from lowp.jit.device import device_of


def variant_of(call: Call) -> Variant:
    """Return the variant of the kernel that the call needs."""
    return Variant(
        head_dim=call.head_dim,
        kv_heads=call.kv_heads,
        query_heads=call.query_heads,
        input_dtype=call.k.dtype,
        kv_dtype=call.k_cache.dtype,
        table_dtype=call.rotation.cos_sin.dtype if call.rotation else call.k.dtype,
        count=call.saturated is not None,
        computed_scales=call.computed_scales,
        channel_scales=call.channel_scales,
    )


def run(call: Call) -> None:
    """Launch the kernel for a checked call."""
    device = device_of(call.k.device)
    variant = variant_of(call)
    ctas = -(-call.tokens * variant.token_threads // build.THREADS)
    with torch.cuda.device(call.k.device):
        kernel = build.kernel(device.arch, variant, call.k.device.index)
        # Dependent launch came with clusters, in sm_90.
        launcher.launch(kernel, (ctas, 1, 1), params_of(call), overlap=call.overlap and device.clusters)
