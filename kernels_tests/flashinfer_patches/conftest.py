"""Fixtures: the FlashInfer that a GPU test imports, with its modules built once and side by side."""

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="session")
def workspace():
    """FlashInfer's float workspace on the GPU, 256 MiB, zeroed."""
    import torch

    return torch.zeros(256 * 1024 * 1024, dtype=torch.uint8, device="cuda")


@pytest.fixture(scope="session")
def built(workspace):
    """Builds every module of the GPU tests at once: cold, one after the other, they would take minutes."""
    import torch
    from flashinfer import attention_sinks, decode
    from flashinfer.prefill import get_batch_prefill_module

    from kernels_tests.flashinfer_patches.cases import HEAD_DIM
    from kernels_tests.flashinfer_patches.runs import sink_wrapper

    bf16, fp16, e4m3 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
    stock = (bf16, bf16, bf16, torch.int32, HEAD_DIM, HEAD_DIM, 0, False, False)
    tasks = [
        *((attention_sinks.sink_module, q, kv, q, torch.int32, HEAD_DIM, HEAD_DIM) for q, kv in
          ((bf16, e4m3), (bf16, bf16), (fp16, e4m3))),
        *((sink_wrapper, workspace, "NHD", kv) for kv in (e4m3, bf16)),
        (get_batch_prefill_module, "fa2", *stock, False),
        (decode.get_batch_decode_module, *stock),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(tasks)) as pool:
        for done in [pool.submit(*task) for task in tasks]:
            done.result()
