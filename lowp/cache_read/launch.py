"""From a checked call and the device to a build of the kernel, its grid and its parameters."""

import math

import torch

from lowp.cache_read import build
from lowp.cache_read.build import Variant
from lowp.cache_read.call import Call
from lowp.cache_read.params import params_of
from lowp.jit import launcher
from lowp.jit.device import device_of


def variant_of(call: Call) -> Variant:
    """Return the variant of the kernel that the call needs."""
    return Variant(
        head_dim=call.head_dim,
        kv_heads=call.kv_heads,
        kv_dtype=call.k_cache.dtype,
        out_dtype=call.k_out.dtype,
        token_scales=call.token_scales,
        channel_scales=call.channel_scales,
    )


def run(call: Call) -> None:
    """Launch the kernel for a checked call: threads for every row of the outputs."""
    device = device_of(call.k_out.device)
    variant = variant_of(call)
    threads = math.ceil(call.rows / variant.thread_rows) * variant.token_threads
    ctas = math.ceil(threads / build.THREADS)
    with torch.cuda.device(call.k_out.device):
        kernel = build.kernel(device.arch, variant, call.k_out.device.index)
        # Dependent launch came with clusters, in sm_90.
        launcher.launch(kernel, (ctas, 1, 1), params_of(call), overlap=call.overlap and device.clusters)
