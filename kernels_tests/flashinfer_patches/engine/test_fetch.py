"""Copies of wheels through the real pip, from a folder instead of a package index."""

import os
import subprocess
import sys
import zipfile

import pytest

from flashinfer_patches import engine, fetch, series
from flashinfer_patches.errors import Problem
from kernels_tests.flashinfer_patches.engine import worlds
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    NEWER,
    VERSION,
    at_once,
    digest,
    expected,
    package_tree,
    write_series,
)


@pytest.fixture
def index(tmp_path, monkeypatch, root):
    """A folder with a wheel of the release, as the only index of pip."""
    links = tmp_path / "index"
    wheel = worlds.wheel(links)
    monkeypatch.setitem(fetch.WHEELS, VERSION, digest(wheel.read_bytes()))
    for name, value in {"NO_INDEX": "1", "CONFIG_FILE": os.devnull, "FIND_LINKS": str(links)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setattr(series, "ROOT", root)
    return links


def test_a_pristine_copy_is_fetched_once(index, tmp_path):
    copy = fetch.pristine(VERSION, tmp_path / "copies")
    assert copy == tmp_path / "copies" / VERSION / "pristine"
    assert package_tree(copy) == expected(CLEAN) and engine.status(copy).state == "clean"
    assert [path.name for path in copy.parent.iterdir()] == ["pristine"], "no wheel and no scratch folder is left"
    next(index.glob("*.whl")).unlink()
    assert fetch.pristine(VERSION, tmp_path / "copies") == copy


def test_a_patched_copy_leaves_the_pristine_copy_unchanged(index, tmp_path):
    copy = fetch.patched(VERSION, tmp_path / "copies")
    assert engine.status(copy).state == "applied" and package_tree(copy) == expected(APPLIED)
    assert package_tree(fetch.pristine(VERSION, tmp_path / "copies")) == expected(CLEAN)
    write_series(series.ROOT, CLEAN, NEWER)
    assert fetch.patched(VERSION, tmp_path / "copies") == copy and package_tree(copy) == expected(NEWER)


def test_a_failed_download(index, tmp_path):
    next(index.glob("*.whl")).unlink()
    with pytest.raises(Problem) as caught:
        fetch.patched(VERSION, tmp_path / "copies")
    assert caught.value.kind == "fetch" and VERSION in caught.value.message and "network" in caught.value.remedy
    assert "ERROR" in caught.value.message and not list((tmp_path / "copies").rglob("*.py"))


def test_a_wheel_with_a_wrong_hash(index, tmp_path):
    with zipfile.ZipFile(next(index.glob("*.whl")), "a") as archive:
        archive.writestr("flashinfer/evil.py", "")
    with pytest.raises(Problem) as caught:
        fetch.pristine(VERSION, tmp_path / "copies")
    assert caught.value.kind == "fetch" and fetch.WHEELS[VERSION] in caught.value.message
    assert not list((tmp_path / "copies").rglob("*.py"))


def test_a_release_without_a_known_wheel(tmp_path):
    with pytest.raises(Problem) as caught:
        fetch.pristine("0.6.18.post1", tmp_path)
    assert caught.value.kind == "version" and all(version in caught.value.remedy for version in fetch.WHEELS)


def test_concurrent_calls_make_a_single_copy(index, tmp_path):
    assert all(at_once(*[lambda: fetch.patched(VERSION, tmp_path / "copies")] * 4))
    assert sorted(path.name for path in (tmp_path / "copies" / VERSION).iterdir()) == ["patched", "pristine"]
    assert package_tree(fetch.patched(VERSION, tmp_path / "copies")) == expected(APPLIED)


def test_make_patch_makes_a_copy_without_an_installed_flashinfer(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch.package, "installed", lambda: None)
    fetch.main(tmp_path / "copies")
    output = capsys.readouterr()
    assert output.out == "" and "no FlashInfer is installed" in output.err
    assert str(tmp_path / "copies" / VERSION / "patched") in output.err and f"{VERSION}+" in output.err


def test_make_patch_patches_the_installed_flashinfer(index, installed, tmp_path, capsys):
    fetch.main(tmp_path / "copies")
    assert package_tree(installed) == expected(APPLIED)
    assert str(installed) in capsys.readouterr().err and not (tmp_path / "copies").exists()


def test_make_patch_fails_with_the_code_of_its_error(installed):
    (installed / DECODE).write_bytes(b"mine\n")
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    (installed / "flashinfer/_build_meta.py").write_text("__version__ = '0.0.1'\n")
    command = [sys.executable, "-m", "flashinfer_patches.fetch"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 4 and "0.0.1" in process.stderr and "remedy:" in process.stderr
