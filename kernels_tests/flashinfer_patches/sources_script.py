"""Writes the sources of a sink module and prints what they are, as JSON. Run in a process of its own.

Arguments: query type, cache type, and "command" for the command that compiles the decode kernel (needs a toolkit).
"""

import json
import sys

import torch
from flashinfer.jit.attention import gen_batch_prefill_attention_sink_module, get_batch_prefill_attention_sink_uri

q_type, kv_type = (getattr(torch, name) for name in sys.argv[1:3])
arguments = ("fa2", q_type, kv_type, q_type, torch.int32, 64, 64, 0, False)
spec = gen_batch_prefill_attention_sink_module(*arguments)
made = {
    "uri": get_batch_prefill_attention_sink_uri(*arguments),
    "folder": str(spec.sources[0].parent),
    "flags": spec.extra_cuda_cflags,
}
if "command" in sys.argv:
    (made["command"],) = (c["command"] for c in spec.get_compile_commands() if "paged_kernel_mask_0.cu" in c["file"])
print(json.dumps(made))
