"""scripts/check_machine.py: its problems on simulated machines."""

import errno
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from flashinfer_patches.errors import ENVIRONMENT
from kernels_tests.scripts.checkout import make_program
from vllm_launch import machine, software
from vllm_launch.provenance import REPO

SCRIPT = REPO / "scripts" / "check_machine.py"


@pytest.fixture
def check(monkeypatch):
    """The script as a module, on a machine without problems."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.delitem(sys.modules, "check_machine", raising=False)
    import check_machine

    monkeypatch.setattr(check_machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(check_machine, "libc", lambda: "glibc 2.36")
    monkeypatch.setattr(check_machine, "cpu_features", lambda: {"avx2", "fma", "f16c", "sse4_2", "popcnt", "ssse3"})
    monkeypatch.setattr(check_machine, "loads", lambda library: True)
    monkeypatch.setattr(check_machine, "importable", lambda module: True)
    monkeypatch.setattr(check_machine, "available_bytes", lambda: 16 << 30)
    monkeypatch.setattr(check_machine, "runs", lambda *command: True)
    set_free_bytes(check_machine, monkeypatch, 100 << 30)
    return check_machine


def set_free_bytes(check, monkeypatch, size):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: usage(size, 0, size))


def test_no_problem_prints_nothing(check, tmp_path, capsys):
    for device in ("cpu", "gpu"):
        assert check.main(device, str(tmp_path / "deep" / "venv")) == 0
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("device", "change", "message", "remedy"),
    [
        ("cpu", {"libc": lambda: None}, "glibc 2.31", "newer"),  # musl, as on Alpine
        ("cpu", {"libc": lambda: "glibc 2.28"}, "glibc 2.28", "newer"),  # RHEL 8
        ("cpu", {"cpu_features": lambda: {"sse4_2"}}, "avx2", "newer"),
        ("gpu", {"cpu_features": lambda: set()}, "sse4_2", "newer"),
        ("cpu", {"loads": lambda library: library != "libnuma.so.1"}, "libnuma.so.1", "apt-get install libnuma1"),
        ("cpu", {"importable": lambda module: module != "ensurepip"}, "lacks ensurepip", "-venv"),
        ("cpu", {"importable": lambda module: module != "ctypes"}, "lacks ctypes", "apt-get install python3"),
        ("cpu", {"available_bytes": lambda: 1 << 30}, "memory", "end other programs"),
    ],
)
def test_each_problem_and_its_remedy_take_a_line(check, monkeypatch, tmp_path, capsys, device, change, message, remedy):
    for name, value in change.items():
        monkeypatch.setattr(check, name, value)
    assert check.main(device, str(tmp_path / "venv")) == ENVIRONMENT
    first, second = capsys.readouterr().err.splitlines()
    assert message in first and second.startswith("setup: remedy: ") and remedy in second


@pytest.mark.parametrize(
    ("device", "machine", "expected"),
    [("cpu", "aarch64", ENVIRONMENT), ("gpu", "aarch64", 0), ("gpu", "riscv64", ENVIRONMENT)],
)
def test_processors(check, monkeypatch, tmp_path, device, machine, expected):
    monkeypatch.setattr(check.platform, "machine", lambda: machine)
    assert check.main(device, str(tmp_path / "venv")) == expected


def test_a_python_without_the_gil_or_32_bits_wide(check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check.sysconfig, "get_config_var", lambda name: 1)
    assert check.main("cpu", str(tmp_path / "venv")) == ENVIRONMENT
    assert "CPython" in capsys.readouterr().err


@pytest.mark.parametrize("lscpu", ["#!/bin/sh\nexit 1\n", None])  # as where /sys is not mounted, or without util-linux
def test_an_lscpu_that_is_missing_or_fails(check, monkeypatch, tmp_path, capsys, lscpu):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    if lscpu:
        make_program(tmp_path / "lscpu", lscpu)
    assert not check.runs("lscpu", "--json")
    assert check.main("cpu", str(tmp_path / "venv")) == ENVIRONMENT
    assert "lscpu" in capsys.readouterr().err


def test_a_full_disk_counts_installed_and_downloaded_bytes(check, monkeypatch, tmp_path, capsys):
    """Both must fit if they share a file system."""
    needed = check.ENVIRONMENT_BYTES["cpu"] + check.DOWNLOAD_BYTES["cpu"]
    monkeypatch.setattr(check.tempfile, "gettempdir", lambda: str(tmp_path))
    for free, expected in ((needed, 0), (needed - 1, ENVIRONMENT)):
        set_free_bytes(check, monkeypatch, free)
        assert check.main("cpu", str(tmp_path / "venv")) == expected
    assert "free" in capsys.readouterr().err


def test_folders_that_cannot_be_written_or_run_programs(check, monkeypatch, tmp_path, capsys):
    """For root too, who cannot write to a read-only file system."""
    real = os.statvfs(tmp_path)
    flags = os.statvfs_result((*real[:8], os.ST_NOEXEC, real[9]))
    monkeypatch.setattr(check.os, "statvfs", lambda folder: flags)
    monkeypatch.setattr(check.os, "access", lambda folder, mode: False)
    assert check.main("cpu", str(tmp_path / "venv")) == ENVIRONMENT
    stderr = capsys.readouterr().err
    assert all(f"{folder} cannot be written" in stderr for folder in (tmp_path, Path.cwd())) and "noexec" in stderr


def test_unusable_paths_of_an_environment(check, tmp_path, capsys):
    assert check.main("cpu", str(tmp_path / ("x" * 300))) == 0  # mkdir reports it
    assert check.main("gpu", str(tmp_path / "two words")) == 0
    for device, name in (("gpu", "a:b"), ("cpu", "two words")):
        assert check.main(device, str(tmp_path / name)) == ENVIRONMENT
        assert name in capsys.readouterr().err


def test_no_folder_for_temporary_files(check, monkeypatch, tmp_path, capsys):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(check.tempfile, "gettempdir", none)
    assert check.main("cpu", str(tmp_path / "venv")) == ENVIRONMENT
    assert "TMPDIR" in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The default folder of huggingface_hub's cache in an empty home."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home" / ".cache" / "huggingface" / "hub"


def download(hub):
    config = hub / "models--owner--a.model" / "snapshots" / "1f" / "config.json"
    config.parent.mkdir(parents=True)
    config.touch()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_missing_model(check, hub, tmp_path, capsys, device):
    for model in ("owner/a.model", "no-such-folder", "/no/such/folder", "../x", "*/*", "~/absent", "x" * 5000):
        assert check.main(device, str(tmp_path / "venv"), model) == ENVIRONMENT
        message, remedy = capsys.readouterr().err.splitlines()
        assert model in message and "MODEL=DIR" in remedy
    download(hub)
    (tmp_path / "home" / "mine").mkdir()
    for model in ("owner/a.model", str(tmp_path), "~/mine"):
        assert check.main(device, str(tmp_path / "venv"), model) == 0, model


@pytest.mark.parametrize(
    ("variable", "folder"),
    [("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_variables_of_the_model_cache(check, hub, monkeypatch, tmp_path, variable, folder):
    monkeypatch.setenv(variable, "~/elsewhere")
    download(tmp_path / "home" / "elsewhere" / folder)
    assert check.main("gpu", str(tmp_path / "venv"), "owner/a.model") == 0


def test_a_bench_on_a_gpu_without_its_driver(check, monkeypatch, tmp_path, capsys):
    """A set-up alone may be for another machine, such as that of a container image."""
    monkeypatch.setattr(check, "runs", lambda *command: command[0] != "nvidia-smi")
    for device, model, expected in (("gpu", str(tmp_path), ENVIRONMENT), ("gpu", "", 0), ("cpu", str(tmp_path), 0)):
        assert check.main(device, str(tmp_path / "venv"), model) == expected
    message, remedy = capsys.readouterr().err.splitlines()
    assert "nvidia-smi" in message and "make bench DEVICE=cpu" in remedy


def test_memory_is_limited_to_that_of_the_container(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import check_machine

    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal: 16000 kB\nMemAvailable: 8000 kB\n")
    assert check_machine.available_bytes(meminfo, limit) == 8000 * 1024
    for text, expected in (("max\n", 8000 * 1024), ("2048000\n", 2048000)):
        limit.write_text(text)
        assert check_machine.available_bytes(meminfo, limit) == expected


@pytest.mark.parametrize("module", ["shutil", "tempfile", "platform"])
def test_a_python_without_its_library_is_a_problem(module):
    """Like Debian's python3-minimal; the script imports no third-party package (-S)."""
    program = f"import sys, runpy; sys.modules[{module!r}] = None; sys.argv[1:] = ['cpu', '/tmp/venv']"
    program += f"; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    process = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert process.returncode == ENVIRONMENT and process.stderr.startswith("setup: ")
    assert "Traceback" not in process.stderr and module in process.stderr and "remedy: " in process.stderr


def test_set_up_and_preflight_have_the_same_requirements(check):
    """The script runs before packages are installed, so that it repeats their requirements."""
    low, high = software.PYTHONS
    assert tuple(range(low[1], high[1] + 1)) == check.PYTHONS
    assert check.FEATURES["cpu"] == machine.CPU_BUILD_FEATURES[0]
    assert software.CPU_LIBRARIES.items() <= (check.LIBRARIES | check.CPU_LIBRARIES).items()
