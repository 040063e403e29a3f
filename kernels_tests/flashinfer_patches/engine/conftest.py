"""A small FlashInfer and its series, new for each test."""

import subprocess
import sys
import tempfile

import pytest

from flashinfer_patches import series
from kernels_tests.flashinfer_patches.engine import worlds


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of all series; killed processes leave their temporary folders below the test's."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return worlds.write_series(tmp_path / "series", worlds.CLEAN, worlds.STEP, worlds.APPLIED)


@pytest.fixture
def site(tmp_path):
    """A folder that holds a clean package of the release."""
    return worlds.install(tmp_path / "site")


@pytest.fixture
def installed(site, root, monkeypatch):
    """The small package as the installed FlashInfer, and its series as the shipped ones; returns its folder."""
    monkeypatch.syspath_prepend(str(site))
    for name in ("flashinfer", "flashinfer_jit_cache", "torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(series, "ROOT", root)
    worlds.write(site, {"torch/__init__.py": b"", "torch/version.py": worlds.TORCH})
    return site


@pytest.fixture
def unshared():
    """The command that runs a shell script in a mount namespace of its own."""
    words = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespaces on this machine: {error}")
    return words
