"""Fixtures: the pristine and the patched FlashInfer of each release, and the modules of the GPU tests.

The GPU tests need only torch and a patched FlashInfer.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

VERSIONS = ["0.6.14", "0.7.2.post1"]


@pytest.fixture(scope="session", params=VERSIONS)
def version(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def pristine(version) -> Path:
    """A folder that has the release's original `flashinfer` package."""
    from flashinfer_patches import fetch

    return fetch.pristine(version)


@pytest.fixture(scope="session")
def patched(pristine, tmp_path_factory) -> Path:
    """A folder that has the package with the series applied; unchanged files are hard links where possible."""
    from flashinfer_patches import engine

    folder = tmp_path_factory.mktemp("patched")
    shutil.copytree(pristine, folder, copy_function=_link_or_copy, dirs_exist_ok=True)
    engine.apply(folder)
    return folder


def _link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def run_script(name: str, package: Path, *arguments: str, arch: str = "121a", cuda: Path | None = None):
    """Run a script of this folder with `package` as its FlashInfer and no GPU, and return the JSON that it prints.

    arch: the target GPU. cuda: the toolkit. Skips the test if dependencies of FlashInfer are not installed.
    """
    environment = (
        os.environ
        | {
            "PYTHONPATH": str(package),
            "FLASHINFER_WORKSPACE_BASE": str(package.parent / "jit"),
            "FLASHINFER_CUDA_ARCH_LIST": f"{arch[:-2]}.{arch[-2:]}",
            "CUDA_VISIBLE_DEVICES": "",
        }
        | ({"CUDA_HOME": str(cuda)} if cuda else {})
    )
    script = Path(__file__).parent / name
    process = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment)
    missing = re.search(r"No module named '([^'.]+)", process.stderr)
    if missing and missing[1] != "flashinfer":
        pytest.skip(f"FlashInfer's {missing[1]} is not installed here")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def workspace():
    """FlashInfer's float workspace on the GPU, 256 MiB, zeroed."""
    import torch

    return torch.zeros(256 * 1024 * 1024, dtype=torch.uint8, device="cuda")


@pytest.fixture(scope="session")
def built(workspace):
    """Build every module of the GPU tests in parallel; one after the other they would take minutes."""
    import torch
    from flashinfer import attention_sinks, decode
    from flashinfer.prefill import get_batch_prefill_module

    from kernels_tests.flashinfer_patches.cases import HEAD_DIM
    from kernels_tests.flashinfer_patches.runs import sink_wrapper

    bf16, fp16, e4m3 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
    stock = (bf16, bf16, bf16, torch.int32, HEAD_DIM, HEAD_DIM, 0, False, False)
    sinks = ((bf16, e4m3, 64), (bf16, bf16, 64), (fp16, e4m3, 64), (fp16, fp16, 64), (bf16, e4m3, 128))
    tasks = [
        *((attention_sinks.sink_module, q, kv, q, torch.int32, dim, dim) for q, kv, dim in sinks),
        *((sink_wrapper, workspace, "NHD", kv) for kv in (e4m3, bf16)),
        (get_batch_prefill_module, "fa2", *stock, False),
        (decode.get_batch_decode_module, *stock),
    ]
    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(*task) for task in tasks]:
            future.result()
