"""Writes the sources of sink modules and prints what they are, as a JSON list. Run in a process of its own.

Arguments: "query type:cache type" for each module, and "command" for the command that compiles its decode kernel
(that needs a toolkit).
"""

import json
import sys

import torch
from flashinfer.jit.attention import gen_batch_prefill_attention_sink_module, get_batch_prefill_attention_sink_uri


def made(pair: str) -> dict:
    q_type, kv_type = (getattr(torch, name) for name in pair.split(":"))
    arguments = ("fa2", q_type, kv_type, q_type, torch.int32, 64, 64, 0, False)
    spec = gen_batch_prefill_attention_sink_module(*arguments)
    found = {
        "uri": get_batch_prefill_attention_sink_uri(*arguments),
        "folder": str(spec.sources[0].parent),
        "flags": spec.extra_cuda_cflags,
    }
    if "command" in sys.argv:
        (found["command"],) = (
            entry["command"] for entry in spec.get_compile_commands() if "paged_kernel_mask_0.cu" in entry["file"]
        )
    return found


print(json.dumps([made(pair) for pair in sys.argv[1:] if ":" in pair]))
