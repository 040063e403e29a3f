"""Call the patched wrappers with CPU tensors and print the results as JSON, for test_guards.

Pinned memory and compiled modules need a GPU, and are replaced by stubs that record their arguments.
"""

import json
import logging
from types import SimpleNamespace

import torch
from flashinfer import (
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
    attention_sinks,
    decode,
    prefill,
)
from flashinfer.attention import BatchAttentionWithAttentionSinkWrapper

BF16, FP16, FP32, E4M3, E5M2 = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
RESULTS, RUNS, LOGGED = {}, [], []
WORKSPACE = torch.zeros(1024, dtype=torch.uint8)
INDPTR, INDICES = torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([2, 0, 1], dtype=torch.int32)
LAST = torch.tensor([5, 16], dtype=torch.int32)
Q = torch.zeros(2, 64, 64, dtype=BF16)
SINKS = torch.zeros(64)
JIT = ["custom", BF16, BF16, BF16, torch.int32, 64, 64, ["sink"], ["float"], ["sm_scale"], ["double"], "V", ""]


class Module:
    """A stub of a compiled module that records its arguments."""

    ragged_run = None

    def plan(self, *args):
        return list(args)

    def paged_run(self, *args):
        RUNS.append(args)

    run = paged_run


def recorder(*_, **__):
    return Module()


def stub():
    empty = torch.empty
    torch.empty = lambda *args, pin_memory=False, **options: empty(*args, **options)
    built = SimpleNamespace(build_and_load=recorder, extra_cuda_cflags=[])
    attention_sinks.gen_batch_prefill_attention_sink_module = lambda *_: built
    decode.gen_customize_batch_prefill_module = lambda *_, **__: built
    prefill.gen_customize_batch_prefill_module = lambda *_, **__: built
    decode.get_batch_decode_module = recorder
    decode.get_batch_prefill_module = recorder
    prefill.get_batch_prefill_module = recorder


def cache(kv_type):
    return (torch.zeros(3, 16, 8, 64).to(kv_type),) * 2


def decoder(*, plan=None, kv_type=E4M3, q_type=BF16, **options):
    wrapper = BatchDecodeWithPagedKVCacheWrapper(WORKSPACE, **({"use_tensor_cores": True} | options))
    if plan is not None:
        wrapper.plan(INDPTR, INDICES, LAST, 64, 8, 64, 16, q_data_type=q_type, kv_data_type=kv_type, **plan)
    return wrapper


def prefiller(*, plan=None, kv_type=E4M3, q_type=BF16, **options):
    wrapper = BatchPrefillWithPagedKVCacheWrapper(WORKSPACE, **options)
    if plan is not None:
        rows = torch.tensor([0, 1, 2], dtype=torch.int32)
        geometry = (rows, INDPTR, INDICES, LAST, 64, 8, 64, 16)
        wrapper.plan(*geometry, causal=True, q_data_type=q_type, kv_data_type=kv_type, **plan)
    return wrapper


def record(name, action):
    """Record the exception of an action, or "ok"."""
    try:
        action()
        RESULTS[name] = ["ok", ""]
    except Exception as error:
        RESULTS[name] = [type(error).__name__, str(error)]


def record_plans(name, plan=None, **options):
    """Record a plan with sinks, in decode and in prefill."""
    for kind, make in (("decode", decoder), ("prefill", prefiller)):
        record(f"{kind}: {name}", lambda make=make: make(plan={"use_sinks": True} | (plan or {}), **options))


def plans():
    for q_type in (E4M3, E5M2, FP32):
        record_plans(f"query {q_type}", q_type=q_type)
    fnuz_types = [getattr(torch, n) for n in ("float8_e4m3fnuz", "float8_e5m2fnuz") if hasattr(torch, n)]
    for kv_type in (E5M2, FP32, torch.uint8, torch.int8, *fnuz_types):
        record_plans(f"cache {kv_type}", kv_type=kv_type)
    for q_type, kv_type in ((BF16, FP16), (FP16, BF16), (BF16, BF16), (FP16, FP16), (BF16, E4M3), (FP16, E4M3)):
        record_plans(f"{q_type} and {kv_type}", q_type=q_type, kv_type=kv_type)
    record_plans("output", {"o_data_type": E4M3})
    record_plans("soft cap", {"logits_soft_cap": 30.0})
    record_plans("rope", {"pos_encoding_mode": "ROPE_LLAMA"})
    record_plans("alibi", {"pos_encoding_mode": "ALIBI"})
    record_plans("fa2", backend="fa2")
    record_plans("window", {"window_left": 127})
    for backend in ("fa3", "trtllm-gen"):
        record_plans(backend, backend=backend)
    record("decode: CUDA cores", lambda: decoder(plan={"use_sinks": True}, use_tensor_cores=False))
    record("decode: three queries", lambda: decoder(plan={"use_sinks": True, "q_len_per_req": 3}))
    record("decode: jit_args", lambda: decoder(plan={"use_sinks": True}, jit_args=JIT, backend="fa2"))
    record("prefill: jit_args", lambda: prefiller(plan={"use_sinks": True}, jit_args=JIT, backend="fa2"))
    record(
        "prefill: mask", lambda: prefiller(plan={"use_sinks": True, "custom_mask": torch.ones(37, dtype=torch.bool)})
    )
    packed = {"use_sinks": True, "packed_custom_mask": torch.ones(5, dtype=torch.uint8)}
    record("prefill: packed mask", lambda: prefiller(plan=packed))
    record("prefill: scoring", lambda: prefiller(plan={"use_sinks": True, "prefix_len_ptr": LAST}))
    record("prefill: fp16 reduction", lambda: prefiller(plan={"use_sinks": True, "use_fp16_qk_reduction": True}))
    buffers = {"qo_indptr_buf": torch.zeros(3), "paged_kv_indptr_buf": torch.zeros(3)}
    buffers |= {"paged_kv_indices_buf": torch.zeros(9), "paged_kv_last_page_len_buf": torch.zeros(2)}
    graph = {"use_cuda_graph": True, "custom_mask_buf": torch.zeros(9)} | buffers
    record("prefill: mask of a graph", lambda: prefiller(plan={"use_sinks": True}, **graph))


def runs():
    two = torch.cat([Q, Q])
    record(
        "decode: rows", lambda: decoder(plan={"use_sinks": True}).run(two, cache(E4M3), sinks=SINKS, enable_pdl=False)
    )
    for kind, make in (("decode", decoder), ("prefill", prefiller)):
        wrapper, plain = make(plan={"use_sinks": True}), make(plan={}, backend="fa2")

        def run(*args, on=wrapper, sinks=SINKS, **options):
            on.run(Q, cache(E4M3), *args, sinks=sinks, enable_pdl=False, **options)

        record(f"{kind}: no sinks", lambda run=run: run(sinks=None))
        record(f"{kind}: shape", lambda run=run: run(sinks=SINKS[:8]))
        record(f"{kind}: two dimensions", lambda run=run: run(sinks=SINKS[None]))
        record(f"{kind}: dtype", lambda run=run: run(sinks=SINKS.bfloat16()))
        record(f"{kind}: device", lambda run=run: run(sinks=SINKS.to("meta")))
        record(f"{kind}: strided", lambda run=run: run(sinks=torch.zeros(128)[::2]))
        record(f"{kind}: positional", lambda run=run: run(SINKS, 0.125, sinks=SINKS))
        record(f"{kind}: v_scale tensor", lambda run=run: run(v_scale=torch.ones(1)))
        record(f"{kind}: k_scale tensor", lambda run=run: run(k_scale=torch.ones(1)))
        record(f"{kind}: fa2 without use_sinks", lambda run=run, plain=plain: run(on=plain))
        fa3 = make(plan={}, backend="fa3")
        record(f"{kind}: fa3 without use_sinks", lambda run=run, fa3=fa3: run(on=fa3))
        jit = make(plan={}, jit_args=JIT, backend="fa2")
        record(f"{kind}: keyword with jit_args", lambda run=run, jit=jit: run(on=jit))
        RUNS.clear()
        out = torch.ones_like(Q)
        run(k_scale=0.5, q_scale=3.0, v_scale=2.0, out=out)
        sinks, sm_scale, v_scale = RUNS[0][-3:]
        RESULTS[f"{kind}: kernel arguments"] = [
            sinks is SINKS, sm_scale, v_scale, bool((out == 1).all()), wrapper._cached_module.uri, wrapper._backend
        ]  # fmt: skip
    cores = decoder(plan={}, use_tensor_cores=False, kv_type=BF16, backend="fa2")
    record("decode: CUDA-core run", lambda: cores.run(Q, cache(BF16), sinks=SINKS, enable_pdl=False))
    planned = decoder(plan={"use_sinks": True})
    geometry = (planned, INDPTR, INDICES, LAST, 64, 8, 64, 16)
    types = {"q_data_type": BF16, "kv_data_type": E4M3}
    record("fast plan: soft cap", lambda: decode.fast_decode_plan(*geometry, logits_soft_cap=30.0, **types))
    record("fast plan: rope", lambda: decode.fast_decode_plan(*geometry, pos_encoding_mode="ROPE_LLAMA", **types))


def wrappers():
    for q_type, kv_type in ((BF16, FP16), (FP16, BF16)):
        types = {"q_data_type": q_type, "kv_data_type": kv_type, "backend": "fa2"}
        record(
            f"sink wrapper: {q_type} and {kv_type}",
            lambda types=types: BatchAttentionWithAttentionSinkWrapper(WORKSPACE, **types),
        )
    ragged = BatchPrefillWithRaggedKVCacheWrapper(WORKSPACE, backend="fa2")
    ragged._sinks = SINKS
    record("ragged: stashed sinks", lambda: ragged.run(Q, Q, Q, enable_pdl=False))


def names():
    """Record the module names of upstream's sink wrapper for arguments that compile different code."""
    uris = []
    prefill.gen_customize_batch_prefill_module = lambda backend, uri, *_, **__: uris.append(uri) or recorder_spec()
    common = {"backend": "fa2", "head_dim_qk": 64, "head_dim_vo": 64}
    for change in (
        {"kv_data_type": E4M3},
        {"kv_data_type": BF16},
        {"kv_data_type": E5M2},
        {"q_data_type": FP16, "kv_data_type": E4M3},
        {"head_dim_qk": 128, "head_dim_vo": 128},
        {"head_dim_vo": 128},
        {"window_left": 127},
        {"use_fp16_qk_reduction": True},
        {"pos_encoding_mode": "ROPE_LLAMA"},
    ):
        BatchAttentionWithAttentionSinkWrapper(WORKSPACE, **(common | change))
    RESULTS["sink wrapper: names"] = uris


def recorder_spec():
    return SimpleNamespace(build_and_load=recorder)


def main():
    class Keep(logging.Handler):
        def emit(self, record):
            LOGGED.append([record.name, record.getMessage()])

    logging.getLogger().addHandler(Keep())
    logging.getLogger("flashinfer").setLevel(logging.INFO)
    stub()
    plans()
    runs()
    wrappers()
    names()
    RESULTS["log"] = [line for name, line in LOGGED if name == "flashinfer"]
    print(json.dumps(RESULTS))


main()
