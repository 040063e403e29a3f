"""What set-up and clean may do to the environment of VENV, and how the other scripts use it."""

import fcntl
import os
from pathlib import Path

import pytest

from kernels_tests.scripts.checkout import FAKE_PYTHON, make_checkout, make_program, pip_calls, run_in
from vllm_launch import profile

STAMP = ".fp8-sinks-locks"


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "checkout")


def assert_refused(process):
    assert process.returncode == 4 and "remedy: " in process.stderr, process.stderr


def test_a_folder_of_the_user_is_refused(checkout, tmp_path):
    """By set-up and clean, through its path or a link, even if it looks like an environment."""
    folder = tmp_path / "thesis"
    for name in ("pyvenv.cfg", "thesis.tex"):
        make_program(folder / name, "mine")
    (tmp_path / "link").symlink_to(folder)
    (checkout / ".flashinfer").mkdir()
    for venv in (folder, tmp_path / "link"):
        for script in ("scripts/setup.sh", "scripts/clean.sh"):
            assert_refused(run_in(checkout, script, VENV=str(venv)))
    (folder / STAMP).symlink_to(folder / "thesis.tex")
    assert_refused(run_in(checkout, "scripts/clean.sh", VENV=str(folder)))
    assert (folder / "thesis.tex").read_text() == "mine"
    assert sorted(os.listdir(folder)) == [STAMP, "pyvenv.cfg", "thesis.tex"] and (tmp_path / "link").is_symlink()
    assert (checkout / ".flashinfer").exists(), "clean removed files before its checks"


@pytest.mark.parametrize("venv", [".", "..", "home", "Makefile"])
def test_a_folder_that_holds_home_or_checkout_is_refused(checkout, tmp_path, venv):
    """Even an empty home, or one with a stamp."""
    home = checkout / "home"
    home.mkdir()
    for folder in (home, checkout, tmp_path):
        (folder / STAMP).touch()
    for script in ("scripts/setup.sh", "scripts/clean.sh"):
        assert_refused(run_in(checkout, script, VENV=venv, HOME=str(home)))
    assert (home / STAMP).exists() and not pip_calls(checkout)


def test_the_root_is_refused(checkout):
    """Runs the check alone: no test runs a script on / that removes files."""
    assert_refused(run_in(checkout, "bash", "-c", ". scripts/venv.sh && require_ours", VENV="/"))


@pytest.mark.parametrize("name", ["absent", "empty", "two words", "deeper/down", "[a-b]*"])
def test_an_absent_or_empty_folder_is_used(checkout, tmp_path, name):
    venv = tmp_path / name
    if name == "empty":
        venv.mkdir()
    process = run_in(checkout, "make", "lint", VENV=str(venv))
    assert process.returncode == 0, process.stderr
    assert f"{venv}/bin/ruff check ." in process.stdout
    assert run_in(checkout, "scripts/setup.sh", VENV=str(venv)).stderr == "", "a second set-up did something"
    assert run_in(checkout, "scripts/clean.sh", VENV=str(venv)).returncode == 0 and not venv.exists()


def test_an_interrupted_set_up_is_repeated(checkout):
    """After SIGKILL, after a failure of pip, and after a change of the locks."""
    venv = checkout / ".venv"
    assert run_in(checkout, "scripts/setup.sh", KILL_SETUP="yes").returncode == -9
    assert_refused(run_in(checkout, "scripts/setup.sh", FAKE_PIP_EXIT="1"))
    (venv / "left over").touch()
    assert run_in(checkout, "scripts/setup.sh").returncode == 0
    assert not (venv / "left over").exists()
    (checkout / "locks" / "dev.txt").write_text("another==1\n")
    (venv / "left over").touch()
    assert run_in(checkout, "scripts/setup.sh").returncode == 0
    assert not (venv / "left over").exists() and (venv / STAMP).read_text().startswith("cpu ")


def test_a_link_to_the_environment_stays(checkout, tmp_path):
    """A dangling link, a link to an environment of ours, and clean, which removes the link's target."""
    target = tmp_path / "disk" / "env"
    (checkout / ".venv").symlink_to(target)
    for dev in ("package==1\n", "package==2\n"):
        (checkout / "locks" / "dev.txt").write_text(dev)
        assert run_in(checkout, "scripts/setup.sh").returncode == 0
        assert (checkout / ".venv").is_symlink() and (target / "bin" / "python").exists()
    assert run_in(checkout, "scripts/clean.sh").returncode == 0
    assert not target.exists()


def test_concurrent_set_ups_are_refused(checkout):
    (checkout / ".venv").mkdir()
    with (checkout / ".venv" / STAMP).open("w") as stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        assert_refused(run_in(checkout, "scripts/setup.sh"))
    assert run_in(checkout, "scripts/setup.sh").returncode == 0


def test_a_moved_checkout_is_installed_again(checkout, tmp_path):
    venv = str(tmp_path / "env")
    assert run_in(checkout, "scripts/setup.sh", VENV=venv).returncode == 0
    moved = checkout.rename(tmp_path / "moved")
    assert run_in(moved, "scripts/setup.sh", VENV=venv).returncode == 0
    assert pip_calls(moved)[-1].endswith("--editable ."), "the environment still refers to the old folder"


def test_serve_and_bench_use_the_environment_of_venv(checkout, tmp_path):
    venv = tmp_path / "two words"
    for script, command in (("serve", "serve"), ("bench", "bench serving")):
        process = run_in(checkout, f"scripts/{script}.sh", "fp8", "--port", "1", VENV=str(venv))
        assert process.stdout == f"{venv}/bin/fp8-sinks {command} fp8 --port 1\n", process.stderr
    assert not (checkout / ".venv").exists()


def test_an_empty_name_is_the_default(checkout):
    process = run_in(checkout, "make", "--no-print-directory", "--eval", 'show: ; @echo "$$VENV"', "show", "VENV=")
    assert process.stdout == ".venv\n"


def test_clean_keeps_runs_and_files_of_the_user(checkout):
    assert run_in(checkout, "scripts/setup.sh").returncode == 0
    ours = [".flashinfer/0.6.14/x", ".pytest_cache/x", ".ruff_cache/x", ".hypothesis/x", "fp8_sinks.egg-info/x"]
    theirs = ["runs/20261121-120000/result.json", "other.egg-info/x", "notes/x"]
    for name in ours + theirs:
        make_program(checkout / name, "")
    process = run_in(checkout, "make", "clean")
    assert process.returncode == 0, process.stderr
    assert all((checkout / name).exists() for name in theirs)
    assert not any((checkout / Path(name).parts[0]).exists() for name in [*ours, ".venv"])
    assert all(Path(name).parts[0] in process.stderr for name in [*ours, ".venv", "runs"]), (
        "each removed or kept path is reported"
    )


def test_every_lock_is_installed_with_hashes_without_the_users_python_path(checkout, tmp_path):
    process = run_in(checkout, "scripts/setup.sh", PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path))
    assert process.returncode == 0, process.stderr
    *locked, ours = pip_calls(checkout)
    assert {word for call in locked for word in call.split() if word.endswith(".txt")} == {
        "locks/cpu-torch.txt",
        *(f"-rlocks/{name}.txt" for name in ("cpu", "dev", "world-model")),
    }
    assert all("--require-hashes" in call and "--no-deps" in call for call in locked) and "--editable ." in ours
    assert all(call.startswith("path= home= ") for call in [*locked, ours])


@pytest.mark.parametrize("line", ["global.target='/x'", "install.user='true'", ":env:.prefix='/x'"])
def test_pip_settings_that_change_the_installation_are_refused(checkout, line):
    process = run_in(checkout, "scripts/setup.sh", FAKE_PIP_CONFIG=f"global.index-url='x'\n{line}")
    assert_refused(process)
    assert line in process.stderr and "index-url" not in process.stderr and not pip_calls(checkout)


def test_a_failed_check_of_the_machine_creates_nothing(checkout):
    assert run_in(checkout, "scripts/setup.sh", FAKE_CHECK_EXIT="4").returncode == 4
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("words", "model"),
    [
        (("setup", "DEVICE=gpu"), ""),
        (("setup", "DEVICE=gpu", "MODEL=mine"), ""),
        (("lint", "DEVICE=gpu"), ""),
        (("bench", "DEVICE=cpu"), ""),
        (("bench", "DEVICE=cpu", "MODEL=two words"), "two words"),
        (("bench", "DEVICE=gpu"), profile.load("baseline").device_settings("gpu").default_model),
        (("bench", "DEVICE=gpu", "MODEL=owner/name"), "owner/name"),
    ],
    ids=str,
)
def test_the_model_of_a_bench_is_checked_before_its_set_up(checkout, tmp_path, words, model):
    run_in(checkout, "make", *words, CHECKED=str(tmp_path / "checked"))
    (checked,) = (tmp_path / "checked").read_text().splitlines()
    assert checked.endswith(f"/.venv {model}"), checked


def test_a_path_that_cannot_be_created(checkout):
    for venv in ("Makefile/below", "x" * 300):
        assert_refused(run_in(checkout, "scripts/setup.sh", VENV=venv))


def test_another_system_than_linux(checkout, tmp_path):
    make_program(tmp_path / "mac" / "uname", "#!/bin/bash\necho Darwin\n")
    assert_refused(run_in(checkout, "scripts/setup.sh", PATH=f"{tmp_path / 'mac'}:{os.environ['PATH']}"))


def test_the_first_line_has_the_duration(checkout):
    assert "minutes" in run_in(checkout, "scripts/setup.sh").stderr.splitlines()[0]


def test_a_supported_python_is_searched(checkout, tmp_path):
    """If python3 is too old, as on Debian 11, or too new, python3.13 to python3.11 are tried."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if "python" not in program.name:
            (programs / program.name).symlink_to(program)
    make_program(programs / "python3", "#!/bin/bash\n[ $1 = -V ] && echo Python 3.9.2\nexit 1\n")
    process = run_in(checkout, "scripts/setup.sh", PATH=str(programs), PYTHON="")
    assert_refused(process)
    assert "Python 3.9.2" in process.stderr
    make_program(programs / "python3.12", FAKE_PYTHON)
    process = run_in(checkout, "scripts/setup.sh", PATH=str(programs), PYTHON="")
    assert process.returncode == 0 and "python3.12" in process.stderr
