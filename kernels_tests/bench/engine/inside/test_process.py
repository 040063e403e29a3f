"""The real engine of vLLM's CPU build, with the embedded model's shape: everything but figures."""

import json

import pytest
from click.testing import CliRunner

from bench import cli
from bench.kinds import read

pytestmark = [pytest.mark.server, pytest.mark.long]
CELLS = "1x512,4x512,4x2048-half,64x512,full"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of stock BF16, stock FP8, and the plugin, whose backend does not run on a CPU."""
    folder = tmp_path_factory.mktemp("engine") / "run"
    words = [
        "stock-fp8",
        "plugin-fp8",
        "--shape",
        "tiny",
        "--cells",
        CELLS,
        "--starts",
        "1",
        "--steps",
        "6",
        "--profile",
    ]
    invocation = CliRunner().invoke(cli.bench, ["engine", *words, "--run-dir", str(folder)])
    assert invocation.exit_code == 0, invocation.output
    return folder


def rows(folder, variant):
    return {row.cell: row for row in read(folder).rows if row.variant == variant}


@pytest.mark.parametrize(("variant", "kv_format"), [("stock-bf16", "bf16"), ("stock-fp8", "e4m3")])
def test_cells_are_measured(folder, variant, kv_format):
    measured = rows(folder, variant)
    assert [*measured] == CELLS.split(",")
    assert "16 sequences at once" in measured.pop("64x512").error
    for row in measured.values():
        assert row.error is None and len(row.step_ms_samples) == 6 and row.tokens_per_s and row.start_s > 1
        assert (row.backend, row.decoder, row.kv_format, row.cuda_graphs) == ("CPU_ATTN", "stock", kv_format, "none")
    assert measured["4x512"].distinct_tokens > 1  # the dummies alone give each sequence the same token
    assert measured["1x512"].ttft_s and measured["4x512"].ttft_s is None
    assert measured["full"].batch > 1


def test_an_fp8_cache_holds_more(folder):
    capacities = [rows(folder, name)["1x512"].capacity_tokens for name in ("stock-bf16", "stock-fp8")]
    assert capacities[1] == pytest.approx(2 * capacities[0], rel=0.02)


def test_an_engine_that_does_not_start_costs_its_cells_alone(folder):
    errors = {row.error for row in rows(folder, "plugin-fp8").values()}
    assert errors == {"RuntimeError: attention backend: expected CUSTOM, got CPU_ATTN (exit code 1)"}


def test_operators_of_a_step_are_listed(folder):
    (profile,) = read(folder).profiles
    assert [*profile.kernels] == ["stock-bf16", "stock-fp8"]
    assert all(times[0].us >= times[-1].us > 0 for times in profile.kernels.values())


def test_the_report_is_written_and_a_resume_starts_nothing(folder):
    assert "## Kernels of a step" in (folder / "report.md").read_text()
    log = (folder / "stock-bf16-1.log").stat().st_size
    resumed = CliRunner().invoke(cli.bench, ["engine", "--resume", str(folder), "--json"])
    assert resumed.exit_code == 0 and len(json.loads(resumed.stdout)["rows"]) == 15
    assert (folder / "stock-bf16-1.log").stat().st_size == log


def test_dummy_routing_and_prefilled_prompts(tmp_path):
    """Without the spread every sequence gets the same token."""
    words = ["stock-bf16", "--shape", "tiny", "--cells", "4x512", "--starts", "1", "--steps", "4"]
    words += ["--routing", "dummy", "--prefill", "--run-dir", str(tmp_path / "run")]
    invocation = CliRunner().invoke(cli.bench, ["engine", *words])
    assert invocation.exit_code == 0, invocation.output
    (row,) = read(tmp_path / "run").rows
    assert (row.distinct_tokens, row.cache) == (1, "prefilled")


def test_two_ranks_share_an_engine(folder, tmp_path):
    """The cache is filled in each rank's process; each has half of the KV heads."""
    words = ["stock-bf16", "--shape", "tiny", "--cells", "4x512", "--starts", "1", "--steps", "4"]
    words += ["--tensor-parallel", "2", "--run-dir", str(tmp_path / "run")]
    invocation = CliRunner().invoke(cli.bench, ["engine", *words])
    assert invocation.exit_code == 0, invocation.output
    (row,) = read(tmp_path / "run").rows
    assert (row.error, row.tensor_parallel, row.backend, row.batch) == (None, 2, "CPU_ATTN", 4)
    assert row.distinct_tokens > 1
    assert row.capacity_tokens == pytest.approx(2 * rows(folder, "stock-bf16")["4x512"].capacity_tokens, rel=0.02)
