"""vLLM's FlashInfer backend fits the patched wrappers: each of its calls, read from its source, binds."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from kernels_tests.flashinfer_patches.conftest import run_script
from vllm_launch import software

newest = pytest.mark.parametrize("version", ["0.7.2.post1"], indirect=True)


def calls(patched: Path, source: Path) -> list[tuple[int, str, str]]:
    """(line, what is called, "" or the misfit) of each call."""
    return [tuple(one) for one in run_script("vllm_calls_script.py", patched, str(source))]


@newest
def test_the_installed_vllms_calls_fit(version, patched):
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vLLM is not installed: none of its sources to read")
    found = calls(patched, Path(spec.origin).parent / "v1" / "attention" / "backends" / "flashinfer.py")
    assert [one for one in found if one[2]] == []
    made = Counter(name for _, name, _ in found)
    decode, prefill = "BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper"
    for name in (decode, prefill):
        assert made[name] and made[f"{name}.plan"] and made[f"{name}.run"], made
    assert made["fast_decode_plan"], made
    _, built = software.vllm_build()
    assert bool(made["BatchAttentionWithAttentionSinkWrapper"]) == (not built.startswith("0.26.")), made


@newest
def test_a_call_that_does_not_fit_is_told(version, patched, tmp_path):
    source = tmp_path / "backend.py"
    source.write_text(
        "decode_wrapper.run(query, cache, sinks=sinks, k_scale=1.0)\n"
        "self.decode_wrapper.run(query, cache, sink=sinks)\n"
        "fast_decode_plan(self, indptr=indptr)\n"
        "prefill_wrapper.run(layer, query)\n"
        "BatchDecodeWithPagedKVCacheWrapper(workspace, **options)\n"
        "other.run(query)\n"
    )
    fits, keyword, missing, unpacked = calls(patched, source)
    assert fits == (1, "BatchDecodeWithPagedKVCacheWrapper.run", "")
    assert keyword[0] == 2 and "'sink'" in keyword[2]
    assert missing[1] == "fast_decode_plan" and "'indices'" in missing[2]
    assert unpacked[0] == 5 and "unpacked" in unpacked[2]
