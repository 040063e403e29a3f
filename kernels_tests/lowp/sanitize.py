"""Every launch that is chosen for gpt-oss on an H200, and every form of the kernel, for a run under compute-sanitizer:

ours="--kernel-name kns=sink_decode --error-exitcode 9"
PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no $ours \\
    python -m kernels_tests.lowp.sanitize
compute-sanitizer --tool racecheck $ours python -m kernels_tests.lowp.sanitize
compute-sanitizer --tool synccheck $ours python -m kernels_tests.lowp.sanitize

`sanitize 1/4` checks every fourth case: parts may run side by side.
The kernels of the reference are left out, and so are API errors: cuda.bindings asks the driver for functions that it
may lack. Without torch's caching every tensor is an allocation of its own, whose bounds memcheck checks.
"""

import sys
from dataclasses import replace

import torch

from lowp.jit.device import Device
from lowp.paged import tight
from lowp.paged.cases import Case, build
from lowp.paged.reference import reference
from lowp.sink_decode import launch as launching
from lowp.sink_decode import sink_decode
from lowp.sink_decode.call import Call
from lowp.sink_decode.heuristic import candidates
from lowp.sink_decode.resources import Launch, Variant

CASES = [
    Case((300,)),
    Case((600,), table_tokens=8192),
    Case((600,), table_tokens=16384),
    Case((600,), table_tokens=20000),
    Case((600,), table_tokens=40000),
    Case((300,) * 2, table_tokens=8192),
    Case((300,) * 3, table_tokens=4096),
    Case((300,) * 4, table_tokens=8192),
    Case((300,) * 5, table_tokens=2700),
    Case((300,) * 5, table_tokens=3072),
    Case((300,) * 5, table_tokens=3700),
    Case((300,) * 10, table_tokens=8192),
    Case((300,) * 11, table_tokens=3700),
    Case((300,) * 5, table_tokens=2048),
    Case((300,) * 5, table_tokens=4096),
    Case((100,) * 16, table_tokens=16384),
    Case((200,) * 20, table_tokens=4096),
    Case((200,) * 24, table_tokens=16384),
    Case((200,) * 28, table_tokens=4096),
    Case((200,) * 36, table_tokens=4096),
    Case((200,) * 24, table_tokens=32768),
    Case((200,) * 64, table_tokens=32768),
    Case((5000, 17, 4200), table_tokens=40000),
    Case((3000, 17, 2500) * 7, table_tokens=40000),
    Case((1500, 900, 0) * 14, table_tokens=40000),
    Case((2500,) * 40, table_tokens=40000),
    Case((5000, 17, 4200), table_tokens=40000, query_heads=8, kv_heads=1),
    Case((300, 1, 0), layout="NHD", granularity="token_head", page_size=32),
    Case((70,) * 8, window_left=31),
    Case((40,) * 16, kv_format="bf16", layout="interleaved"),
    Case((300, 33, 0), layout="interleaved"),
    Case((300, 33), kv_format="int8", granularity="token_head", layout="interleaved", window_left=31),
    Case((600, *(20,) * 23), granularity="head", table_tokens=8192),
    Case((200,) * 66, table_tokens=512),
    Case((20,) * 140),
    Case((20,) * 140, table_tokens=512),
    Case((200,) * 24, table_tokens=2048),
    Case((20,) * 100, table_tokens=8192),
    Case((64,) * 130, query_heads=8, kv_heads=8),
    Case((20,) * 80, window_left=15),
    Case((20,) * 140, window_left=15),
    Case((20,) * 280, window_left=15),
    Case((20,) * 140, query_heads=128, query_tokens=3, window_left=15),
    Case((300, 33), kv_format="int8", granularity="token_head"),
    Case((300, 33, 0), kv_format="int8", granularity="channel", v_granularity="token_head", head_dim=128, layout="NHD"),
    Case((600,), kv_format="int8", granularity="channel", v_granularity="head", table_tokens=8192),
    Case((300, 2), query_tokens=4, window_left=31),
    Case((300, 2), query_tokens=4, head_dim=128, kv_format="int8", granularity="head"),
    Case((5000, 17, 4200), query_tokens=3, table_tokens=40000, query_heads=16, kv_heads=1),
    Case((70,) * 130, query_tokens=2, query_heads=40, kv_heads=8, kv_format="bf16"),
    Case((300, 33), head_dim=128, query_heads=16, kv_heads=1, kv_format="fp16", query="fp16"),
    Case((300, 33), kv_format="bf16", query="fp16"),
    Case((300, 33), head_dim=128, query_heads=16, kv_heads=1, kv_format="bf16", query="fp16"),
]


# Long, short and empty rows in one call: of one KV head more, for planned quotas that cross the borders of rows.
UNEQUAL = Case((3000, 17, 0, 700, 2100, 1), table_tokens=4096)
H200 = Device("sm_90a", True, 132, 232_448, 233_472)


def fixed_launches() -> list[tuple[Launch, Case]]:
    """Every candidate for gpt-oss, each at UNEQUAL, planned ones at the same rows of one KV head too."""
    variant, bound = Variant(64, 8, True, torch.float8_e4m3fn, False, False), 131_072
    launches = dict.fromkeys(x for batch in range(1, 513) for x in candidates(variant, batch, 8, bound, H200))
    single_head = replace(UNEQUAL, query_heads=8, kv_heads=1)
    return [(x, UNEQUAL) for x in launches] + [(x, single_head) for x in launches if x.cluster == 0]


def check(case, launch=None):
    """Exit with 1 where the kernel's output is not the reference's; launch: instead of the choice."""
    arguments = build(case, "cuda")
    out = torch.empty_like(arguments["q"])
    if launch:
        launching.run(Call(**arguments, out=out, lse=None, workspace=None), launch)
    else:
        sink_decode(**arguments, out=out)
    # 5e-3: one of the cases has 10,400 rows of BF16 probabilities, whose worst is at 4.2e-3.
    problems = tight.problems(out, reference(**arguments)[0], rel_l2=5e-3)
    print(case, launch or "", problems or "agrees", flush=True)
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    part, parts = map(int, sys.argv[1].split("/")) if sys.argv[1:] else (1, 1)
    checks = [(case, None) for case in CASES] + [(case, launch) for launch, case in fixed_launches()]
    for case, launch in checks[part - 1 :: parts]:
        check(case, launch)
