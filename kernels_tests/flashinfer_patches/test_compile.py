"""The FP8 decode kernel, compiled by nvcc for each architecture: no spills, and it fits the shared memory."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from flashinfer_patches import sink_kernels
from kernels_tests.flashinfer_patches.conftest import VERSIONS, run_script

# Shared memory of a multiprocessor and the maximum of a block, bytes (CUDA programming guide).
SHARED = {"90a": (233472, 232448), "120a": (102400, 101376), "121a": (102400, 101376)}
PROBE = Path(__file__).parent / "launch_probe.cuh"
MAIN = """
int main(int, char** sizes) {
  shared_per_sm = std::atoi(sizes[1]);
  shared_per_block = std::atoi(sizes[2]);
  PagedParams params{};
  params.padded_batch_size = 1;
  params.num_qo_heads = 64;
  params.paged_kv.num_heads = 8;
  params.group_size = flashinfer::uint_fastdiv(8);
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<ARGUMENTS>(params, nullptr, nullptr, false, nullptr);
}
"""
ALL = [(version, arch) for version in VERSIONS for arch in SHARED]
NORMAL = (VERSIONS[0], "121a")


def cases():
    return [pytest.param(*case, marks=pytest.mark.long if case == NORMAL else pytest.mark.compile) for case in ALL]


@pytest.mark.parametrize(("version", "arch"), cases(), indirect=["version"])
def test_decode_kernel_fits_and_does_not_spill(version, patched, arch, tmp_path):
    cuda = sink_kernels.toolkit()
    if cuda is None:
        pytest.skip("needs a CUDA toolkit with nvcc; none here")
    (module,) = run_script("sources_script.py", patched, "bfloat16:float8_e4m3fn", "command", arch=arch, cuda=cuda)
    source = (Path(module["folder"]) / "batch_prefill_paged_kernel_mask_0.cu").read_text()
    # Decode packs a KV head's 8 query heads into rows: query tile 16. The other tiles are prefill's.
    (arguments,) = [a for a in re.findall(r"Dispatched<(.*?)>\(", source, re.S) if "CTA_TILE_Q=*/16," in a]
    includes = source[: source.index("namespace")]
    probe = tmp_path / "probe.cu"
    probe.write_text(f'#include "{PROBE}"\n{includes}' + MAIN.replace("ARGUMENTS", arguments))
    # FlashInfer's own flags, but the probe is linked.
    command = shlex.split(module["command"])
    flags = command[command.index("-c") + 2 : command.index("-o")]
    flags += ["-Xptxas=-v", f"-I{module['folder']}", "-o", str(tmp_path / "probe"), str(probe)]
    built = subprocess.run([cuda / "bin" / "nvcc", *flags], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    run = subprocess.run([tmp_path / "probe", *map(str, SHARED[arch])], capture_output=True, text=True, check=True)
    address, dynamic = run.stdout.split()
    symbols = subprocess.run(["nm", tmp_path / "probe"], capture_output=True, text=True, check=True).stdout
    (kernel,) = re.findall(rf"^0*{address} \w (\S+)$", symbols, re.M)
    assert "AttentionSink" in kernel and "__nv_fp8_e4m3" in kernel
    (report,) = [part for part in built.stderr.split("Compiling entry function")[1:] if f"'{kernel}'" in part]
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, report[:600]
    static = re.search(r"(\d+) bytes smem", report)
    assert int(dynamic) + int(static[1] if static else 0) <= SHARED[arch][1]
