"""A small FlashInfer and its series, anew for each test."""

import tempfile

import pytest

from kernels_tests.flashinfer_patches import worlds


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of all series; temporary folders of killed processes stay below the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return worlds.write_series(tmp_path / "series", worlds.CLEAN, worlds.STEP, worlds.APPLIED)


@pytest.fixture
def site(tmp_path):
    """A folder that holds a clean package of the release."""
    return worlds.install(tmp_path / "site")
