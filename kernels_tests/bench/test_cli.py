"""What `bench serving` says of its run and its folder, on fake servers; and the commands on result files."""

import json

import pytest
from click.testing import CliRunner

from bench import cli
from bench.kinds import read
from bench.record import run_folder
from bench.record.files import write
from bench.record.run_folder import CACHE, CACHE_MARK, Request
from bench.servers.run import PROVENANCE
from bench.serving import run as serving
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_match, a_result, two_profiles

REQUEST = Request(kind="serving", profiles=["baseline"], model=None, overrides=[])


@pytest.mark.parametrize("ends_well", [True, False])
def test_only_an_unfinished_run_is_to_be_resumed(servers, monkeypatch, tmp_path, ends_well):
    def execute(run, command):
        (run.folder / PROVENANCE).touch()
        write(two_profiles(), run.folder / "result.json")
        if not ends_well:
            raise Problem("server", "the server ended", "see its log")
        return two_profiles()

    monkeypatch.setattr(serving, "execute", execute)
    folder = tmp_path / "a run"
    invocation = CliRunner().invoke(cli.bench, ["serving", "baseline", "fp8", "--run-dir", str(folder)])
    assert (invocation.exit_code == 0) is ends_well, invocation.output
    assert f"result: {folder}/result.json\nreport: {folder}/report.md\n" in invocation.stderr
    assert (f"resume: fp8-sinks bench serving --resume '{folder}'" in invocation.stderr) is not ends_well


def test_a_failed_gate_has_an_exit_code_of_its_own(servers, reports, monkeypatch, tmp_path):
    failed = two_profiles(greedy=[a_match(False)])
    for folder, result, exit_code in (("failed", failed, 3), ("passed", two_profiles(), 0)):
        monkeypatch.setattr(serving, "execute", lambda run, command, result=result: result)
        words = ["serving", "baseline", "fp8", "--run-dir", str(tmp_path / folder)]
        assert CliRunner().invoke(cli.bench, words).exit_code == exit_code


def files(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def users_cache(folder):
    (folder / "cache").mkdir(parents=True)


def users_run(folder):
    """A folder of something else with a file of the same name."""
    folder.mkdir()
    (folder / "request.json").write_text('{"url": "http://127.0.0.1"}')


def linked_cache(folder):
    write_request(folder)
    (folder.parent / "theirs").mkdir()
    (folder / CACHE).symlink_to(folder.parent / "theirs")


def linked_mark(folder):
    write_request(folder)
    (folder / CACHE).mkdir()
    (folder.parent / CACHE_MARK).touch()
    (folder / CACHE / CACHE_MARK).symlink_to(folder.parent / CACHE_MARK)


def unmarked_cache(folder):
    write_request(folder)
    users_cache(folder)
    (folder / "cache" / "theirs").write_text("precious")


def write_request(folder):
    folder.mkdir()
    write(REQUEST, folder / "request.json")


@pytest.mark.parametrize("make", [users_cache, users_run, linked_cache, linked_mark, unmarked_cache])
def test_a_users_folder_is_no_run_folder_and_stays_as_it_is(servers, tmp_path, make):
    folder = tmp_path / "theirs of old"
    make(folder)
    before = files(tmp_path)
    invocation = CliRunner().invoke(cli.bench, ["serving", "baseline", "--run-dir", str(folder)])
    assert invocation.exit_code == 2 and "--run-dir" in invocation.stderr, invocation.output
    assert files(tmp_path) == before and servers.plans == []


def test_a_cold_start_empties_our_cache_and_follows_no_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("theirs")
    with run_folder.opened(tmp_path / "run", REQUEST):
        cache = tmp_path / "run" / CACHE
        assert run_folder.wipe_cache(cache).files == 0
        (cache / "vllm").mkdir()
        (cache / "vllm" / "kernel").write_bytes(b"12345")
        for link in (cache / "link", cache / "vllm" / "link"):
            link.symlink_to(precious)
        wiped = run_folder.wipe_cache(cache)
    assert (wiped.files, wiped.bytes) == (1, 5)
    assert [path.name for path in cache.iterdir()] == [CACHE_MARK]
    assert (precious / "file").read_text() == "theirs"


def test_without_our_mark_nothing_is_wiped(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_text("theirs")
    with pytest.raises(Problem):
        run_folder.wipe_cache(tmp_path / "cache")
    assert (tmp_path / "cache" / "file").exists()


def test_a_run_folder_of_another_request_is_refused(tmp_path):
    with run_folder.opened(tmp_path / "run", REQUEST):
        pass
    with (
        pytest.raises(Problem, match="another"),
        run_folder.opened(tmp_path / "run", REQUEST.model_copy(update={"model": "other"})),
    ):
        pass
    with run_folder.opened(tmp_path / "run", REQUEST):
        assert run_folder.read_request(tmp_path / "run", REQUEST.kind) == REQUEST


def test_keep_replaces_the_same_run_alone(tmp_path):
    def keep(day, text="first"):
        run_of_day = tmp_path / f"run-{day}"
        run_of_day.mkdir(exist_ok=True)
        write(two_profiles(description=text).model_copy(update={"provenance": a_result(day=day).provenance}),
              run_of_day / "result.json")  # fmt: skip
        return CliRunner().invoke(cli.bench, ["keep", str(run_of_day), "--results", str(tmp_path / "results")])

    assert keep(day=1).exit_code == 0
    assert keep(day=1, text="judged again").exit_code == 0
    (target,) = (tmp_path / "results").iterdir()
    assert read(target).rows[1].description == "judged again"
    before = target.read_bytes()
    refused = keep(day=2)
    assert refused.exit_code == 2 and "--results" in refused.stderr
    assert files(tmp_path / "results") == {target.name: before}


def test_keep_overwrites_no_file_that_it_cannot_read(tmp_path):
    write(two_profiles(), tmp_path / "result.json")
    (tmp_path / "results").mkdir()
    theirs = tmp_path / "results" / f"serving-{two_profiles().id}.json"
    theirs.write_text("theirs")
    invocation = CliRunner().invoke(cli.bench, ["keep", str(tmp_path), "--results", str(tmp_path / "results")])
    assert invocation.exit_code == 2 and theirs.read_text() == "theirs"


def test_a_quick_run_is_not_kept(tmp_path):
    result = two_profiles()
    rows = [row.model_copy(update={"left_out": ["sinks"]}) for row in result.rows]
    write(result.model_copy(update={"rows": rows}), tmp_path / "result.json")
    invocation = CliRunner().invoke(cli.bench, ["keep", str(tmp_path), "--results", str(tmp_path / "results")])
    assert invocation.exit_code == 2 and not (tmp_path / "results").exists()


def test_report_and_compare_take_run_folders(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write(two_profiles(), folder / "result.json")
    (folder / "provenance.json").write_text(json.dumps({"created": "now"}))
    (folder / "request.json").write_text("{}")
    invocation = CliRunner().invoke(cli.bench, ["report", str(folder), "--out", str(tmp_path)])
    assert invocation.exit_code == 0 and (tmp_path / "BENCHMARK_RESULTS.md").exists(), invocation.output
    for a, b in ((str(folder), str(folder)), (f"{folder}:baseline", f"{folder}:fp8")):
        invocation = CliRunner().invoke(cli.bench, ["compare", a, b])
        assert invocation.exit_code == 0, invocation.output


def test_a_folder_without_a_result_is_a_clear_line(tmp_path):
    compared = CliRunner().invoke(cli.bench, ["compare", str(tmp_path), str(tmp_path)])
    assert compared.exit_code == 2 and f"{tmp_path} has no result.json" in compared.stderr
    with run_folder.opened(tmp_path / "run", REQUEST):
        pass
    (tmp_path / "run" / PROVENANCE).write_text("{}")
    for words in (["compare", str(tmp_path / "run"), str(tmp_path / "run")], ["report", str(tmp_path / "run")]):
        invocation = CliRunner().invoke(cli.bench, words)
        assert invocation.exit_code == 2 and "no result.json" in invocation.stderr
        assert f"--resume {tmp_path / 'run'}" in invocation.stderr


@pytest.mark.parametrize("text", ["precious", "pid 1 of theirs"])
def test_a_users_lock_file_stays_as_it_is(servers, tmp_path, text):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / run_folder.LOCK).write_text(text)
    before = files(tmp_path)
    invocation = CliRunner().invoke(cli.bench, ["serving", "baseline", "--run-dir", str(tmp_path / "theirs")])
    assert invocation.exit_code == 2 and run_folder.LOCK in invocation.stderr
    with pytest.raises(Problem), run_folder.opened(tmp_path / "theirs", REQUEST):
        pass
    assert files(tmp_path) == before and servers.plans == []


@pytest.mark.parametrize("text", ["", "pid 7 (bench serving) since 10:11:12"])
def test_the_lock_file_of_a_killed_run_is_taken(tmp_path, text):
    (tmp_path / run_folder.LOCK).write_text(text)
    with run_folder.opened(tmp_path, REQUEST):
        assert (tmp_path / run_folder.LOCK).read_text().startswith("pid ")
