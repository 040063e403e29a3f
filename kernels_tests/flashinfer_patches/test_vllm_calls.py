"""The calls of vLLM's FlashInfer backend, read from its source, match the patched wrappers."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from kernels_tests.flashinfer_patches.conftest import run_script
from vllm_launch import software

newest = pytest.mark.parametrize("version", ["0.7.2.post1"], indirect=True)


def calls(patched: Path, source: Path) -> list[tuple[int, str, str]]:
    """List (line, callee, mismatch or "") of each call."""
    return [tuple(row) for row in run_script("vllm_calls_script.py", patched, str(source))]


@newest
def test_the_calls_of_the_installed_vllm_match(version, patched):
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vLLM is not installed")
    rows = calls(patched, Path(spec.origin).parent / "v1" / "attention" / "backends" / "flashinfer.py")
    assert [row for row in rows if row[2]] == []
    counts = Counter(name for _, name, _ in rows)
    decode, prefill = "BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper"
    for name in (decode, prefill):
        assert counts[name] and counts[f"{name}.plan"] and counts[f"{name}.run"], counts
    assert counts["fast_decode_plan"], counts
    _, built = software.vllm_build()
    assert bool(counts["BatchAttentionWithAttentionSinkWrapper"]) == (not built.startswith("0.26.")), counts


@newest
def test_a_call_that_does_not_match_is_reported(version, patched, tmp_path):
    source = tmp_path / "backend.py"
    source.write_text(
        "decode_wrapper.run(query, cache, sinks=sinks, k_scale=1.0)\n"
        "self.decode_wrapper.run(query, cache, sink=sinks)\n"
        "fast_decode_plan(self, indptr=indptr)\n"
        "prefill_wrapper.run(layer, query)\n"
        "BatchDecodeWithPagedKVCacheWrapper(workspace, **options)\n"
        "other.run(query)\n"
    )
    matching, keyword, missing, unpacked = calls(patched, source)
    assert matching == (1, "BatchDecodeWithPagedKVCacheWrapper.run", "")
    assert keyword[0] == 2 and "'sink'" in keyword[2]
    assert missing[1] == "fast_decode_plan" and "'indices'" in missing[2]
    assert unpacked[0] == 5 and "unpacked" in unpacked[2]
