"""What `bench serving` tells about its run folder; the run itself is pretended."""

import pytest
from click.testing import CliRunner

from bench import cli
from bench.result import write
from kernels_tests.bench.samples import two_profiles
from vllm_launch.errors import Problem


@pytest.mark.parametrize("ends_well", [True, False])
def test_only_a_run_that_did_not_end_is_to_be_resumed(monkeypatch, tmp_path, ends_well):
    def execute(run, command):
        write(two_profiles(), run.folder / "result.json")
        if not ends_well:
            raise Problem("server", "the server ended", "see its log")
        return two_profiles()

    monkeypatch.setattr(cli.serving, "execute", execute)
    folder = tmp_path / "a run"
    done = CliRunner().invoke(cli.bench, ["serving", "baseline", "fp8", "--run-dir", str(folder)])
    assert (done.exit_code == 0) is ends_well, done.output
    assert f"result: {folder}/result.json\nreport: {folder}/report.md\n" in done.stderr
    assert (f"resume: fp8-sinks bench serving --resume '{folder}'" in done.stderr) is not ends_well
