"""`bench serving --resume` on an external server: refused where another server answers at its URL."""

import pytest

from kernels_tests.bench.serving.conftest import row_of
from kernels_tests.bench.stub_server import CARD

METRICS = """
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
process_start_time_seconds {start}
vllm:cache_config_info{{block_size="16",cache_dtype="{dtype}",engine="0",num_gpu_blocks="{blocks}"}} 1.0
"""


def pages(dtype="auto", blocks=1000, start=1.0, version="0.32.0"):
    metrics = METRICS.format(dtype=dtype, blocks=blocks, start=start)
    return {"/version": f'{{"version": "{version}"}}', "/metrics": metrics}


def test_another_model_is_refused(serving, stub):
    serving("--url", stub.url, "--quick")
    stub.cards = [CARD | {"max_model_len": 2048}]
    serving("--resume", "run", exit_code=2)


@pytest.mark.parametrize("change", [{"dtype": "fp8"}, {"version": "0.33.0"}])
def test_other_settings_are_refused(serving, stub, tmp_path, change):
    stub.pages = pages()
    serving("--url", stub.url, "--quick")
    before = (tmp_path / "run" / "result.json").read_bytes()
    stub.pages = pages(**change)
    assert next(iter(change.values())) in serving("--resume", "run", exit_code=2).stderr
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_a_restarted_server_of_the_same_settings_resumes(serving, stub):
    stub.pages = pages()
    assert "states no settings" not in serving("--url", stub.url, "--quick").stderr
    stub.pages = pages(blocks=1001, start=2.0)
    serving("--resume", "run")


def test_other_greedy_answers_are_refused(serving, stub, tmp_path):
    assert "states no settings" in serving("--url", stub.url, "--quick").stderr
    stub.first = 200
    assert "0 of 32 tokens" in serving("--resume", "run", exit_code=2).stderr
    stub.first = 100
    serving("--resume", "run")
    assert row_of(tmp_path).failures == []


@pytest.mark.parametrize("page", ["<html>", "[]", '{"other": 1}'])
def test_pages_of_another_kind_are_no_settings(serving, stub, page):
    stub.pages = {"/version": page, "/metrics": page}
    assert "states no settings" in serving("--url", stub.url, "--quick").stderr
