"""Write the sources of sink modules and print their names, folders and flags as a JSON list.

Arguments: "query type:cache type" for each module, and "command" to print also the command that compiles its decode
kernel, which needs a toolkit.
"""

import json
import sys

import torch
from flashinfer.jit.attention import gen_batch_prefill_attention_sink_module, get_batch_prefill_attention_sink_uri


def describe(pair: str) -> dict:
    q_type, kv_type = (getattr(torch, name) for name in pair.split(":"))
    arguments = ("fa2", q_type, kv_type, q_type, torch.int32, 64, 64, 0, False)
    spec = gen_batch_prefill_attention_sink_module(*arguments)
    module = {
        "uri": get_batch_prefill_attention_sink_uri(*arguments),
        "folder": str(spec.sources[0].parent),
        "flags": spec.extra_cuda_cflags,
    }
    if "command" in sys.argv:
        (module["command"],) = (
            entry["command"] for entry in spec.get_compile_commands() if "paged_kernel_mask_0.cu" in entry["file"]
        )
    return module


print(json.dumps([describe(pair) for pair in sys.argv[1:] if ":" in pair]))
