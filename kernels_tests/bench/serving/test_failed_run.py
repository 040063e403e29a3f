"""`bench serving` with a real server and real llama-benchy: a step fails, the others stay in the result."""

import pytest
from safetensors.torch import load_file, save_file

from bench import kinds as result
from bench import suite
from bench.accuracy import greedy
from bench.accuracy.greedy import Answer
from bench.record.steps import load
from bench.servers.client import endpoint_of
from kernels_tests.bench.serving import small
from kernels_tests.processes import completed, free_port
from vllm_launch import model, plan, profile, server

pytestmark = [pytest.mark.server, pytest.mark.long]
TOO_DEEP = 99_999  # tokens, more than the model's context: llama-benchy fails


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Run one profile at a depth that works and at one that does not; returns (process, run folder)."""
    folder = tmp_path_factory.mktemp("failed")
    command = small.command(folder, {"small-baseline": "baseline"}, [0, TOO_DEEP])
    context = ["--", "--max-model-len", "4k"]  # in this form the bench does not read it, and refuses no depth before
    return completed([*command, "--run-dir", str(folder / "run"), *context], small.RUN_S), folder / "run"


def test_a_failed_request_keeps_the_measured_steps(failed):
    process, run = failed
    assert process.returncode == 1, process.stderr
    assert "remedy:" in process.stderr and "--resume" in process.stderr
    (row,) = result.read(run / "result.json").rows
    assert [rate.depth for rate in row.rates] == [0]
    assert [start.cache for start in row.starts] == ["cold", "scored"] and small.first_answer(run, row).startswith(
        " Paris"
    )
    (failure,) = row.failures
    assert failure.step == f"rates at depth {TOO_DEEP}" and "2 of 2 requests failed: HTTP 400" in failure.message
    assert [attempt.depth for attempt in row.unrated] == [TOO_DEEP]
    assert row.accuracy.passed, "the steps after it are not left out"


def test_zeroed_sinks_fail_the_gate(failed, tmp_path):
    _, run = failed
    folder = tmp_path / model.EMBEDDED.name
    folder.mkdir()
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((model.EMBEDDED / file).read_bytes())
    tensors = load_file(model.EMBEDDED / "model.safetensors")
    zeroed = {name: tensor * 0 for name, tensor in tensors.items() if name.endswith(".sinks")}
    assert zeroed
    save_file(tensors | zeroed, folder / "model.safetensors", {"format": "pt"})

    planned = plan.make(
        profile.load("baseline"), port=free_port(), cache_root=tmp_path / "cache", model_path=str(folder)
    )
    references = load(run / "small-baseline" / "greedy.json", list[Answer])
    with server.running(planned, tmp_path, show_status=lambda line: None) as running:
        answers = [
            greedy.answer(endpoint_of(running), expected.prompt, len(expected.token_ids)) for expected in references
        ]
    gate, pairs = suite.load(None, "tiny_gpt_oss").greedy, zip(answers, references, strict=True)
    assert not any(greedy.match(answer, expected, "baseline", gate).passed for answer, expected in pairs)
