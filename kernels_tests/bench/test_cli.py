"""What `bench serving` tells about its run and its folder; the run itself is pretended."""

import pytest
from click.testing import CliRunner

from bench import cli, run
from bench.result import ServingResult, write
from kernels_tests.bench.samples import two_profiles
from kernels_tests.vllm_launch.machines import HOST
from vllm_launch import plan
from vllm_launch.errors import Problem


@pytest.mark.parametrize("ends_well", [True, False])
def test_only_a_run_that_did_not_end_is_to_be_resumed(monkeypatch, tmp_path, ends_well):
    def execute(begun, command):
        (begun.folder / run.BEGUN).touch()
        write(two_profiles(), begun.folder / "result.json")
        if not ends_well:
            raise Problem("server", "the server ended", "see its log")
        return two_profiles()

    monkeypatch.setattr(cli.serving, "execute", execute)
    folder = tmp_path / "a run"
    done = CliRunner().invoke(cli.bench, ["serving", "baseline", "fp8", "--run-dir", str(folder)])
    assert (done.exit_code == 0) is ends_well, done.output
    assert f"result: {folder}/result.json\nreport: {folder}/report.md\n" in done.stderr
    assert (f"resume: fp8-sinks bench serving --resume '{folder}'" in done.stderr) is not ends_well


def test_what_keeps_a_profile_from_running_is_told_before_the_first_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "detect", lambda _device: HOST)
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("cpu", "0.32.0"))
    refused = tmp_path / "refused.yaml"
    refused.write_text("extends: fp8\nvllm: {kv-cache-dtype: nvfp4}\n")
    asked = run.Request(profiles=["baseline", str(refused)], model=None, overrides=[])
    begun, measured = run.Run(tmp_path / "run", asked, say=print, done=print), []
    with pytest.raises(Problem, match=r"nvfp4: .* past the buffer"):
        run.execute(begun, ["fp8-sinks"], ServingResult, measured.append, row=None)
    assert measured == [] and not (begun.folder / "result.json").exists()
    done = CliRunner().invoke(cli.bench, ["serving", *asked.profiles, "--run-dir", str(tmp_path / "again")])
    assert done.exit_code != 0 and "resume:" not in done.stderr
