"""The shipped series on the released wheels. The wheels are fetched into .flashinfer where they are missing."""

import base64
import csv
import os
import shutil
import subprocess

import pytest

from flashinfer_patches import engine, fetch, package, series
from flashinfer_patches.state import KEPT
from kernels_tests.flashinfer_patches.engine import worlds
from vllm_launch.provenance import REPO


def test_every_series_has_its_wheel():
    assert series.versions() == list(fetch.WHEELS)


@pytest.fixture(params=fetch.WHEELS)
def release(request):
    """A release, and a copy of its wheel to patch: hard links, as uv installs."""
    place = fetch.FOLDER / request.param / f"test-{os.getpid()}"
    shutil.copytree(fetch.pristine(request.param), place, copy_function=os.link)
    yield request.param, place
    shutil.rmtree(place)


def facts(folder):
    """Path to (inode, size) of everything in the package, and sha256 of nothing: the wheel has thousands of files."""
    found = {}
    for top, _, names in os.walk(folder / "flashinfer"):
        for name in names:
            status = os.lstat(os.path.join(top, name))
            found[os.path.relpath(os.path.join(top, name), folder)] = (status.st_ino, status.st_size)
    return found


def test_apply_and_revert(release):
    version, place = release
    clean = facts(place)
    files = {file.path: file for file in series.read(version).manifest.files}
    assert engine.check(place).state == "clean" and facts(place) == clean
    assert engine.apply(place).patch_set == series.read(version).manifest.patch_set
    applied = facts(place)
    assert {path for path in applied.keys() | clean.keys() if applied.get(path) != clean.get(path)} == set(files)
    assert engine.apply(place).state == "applied" and facts(place) == applied
    engine.revert(place)
    reverted = facts(place)
    assert reverted.keys() == clean.keys() and not (place / KEPT).exists()
    assert {path for path in clean if reverted[path] != clean[path]} <= set(files), "the others are the same files"
    assert {path: package.sha256(package.content(place / path)) for path in files} == {
        path: file.before for path, file in files.items()
    }
    assert engine.status(fetch.pristine(version)).state == "clean", "the hard-linked copy is as it was"


def test_a_linked_package_finds_its_own_headers(release, tmp_path):
    """FlashInfer looks beside the resolved jit/env.py: of a package that is linked, it would compile another's."""
    version, _ = release
    source = fetch.pristine(version)
    before = facts(source)
    site = worlds.link(source, tmp_path / "site")
    engine.apply(site)
    assert (site / "flashinfer/jit/env.py").resolve().parents[2] == site
    assert not any(path.is_symlink() for path in (site / "flashinfer").rglob("*"))
    assert facts(source) == before and engine.status(source).state == "clean"
    assert engine.revert(site).state == "clean"


def test_hashes_before_are_those_of_the_wheels_own_record(release):
    version, place = release
    (record,) = place.glob("*.dist-info/RECORD")
    recorded = {row[0]: row[1] for row in csv.reader(record.read_text().splitlines())}
    for file in series.read(version).manifest.files:
        if file.before is None:
            assert file.path not in recorded
        else:
            digest = base64.urlsafe_b64encode(bytes.fromhex(file.before)).rstrip(b"=").decode()
            assert recorded[file.path] == f"sha256={digest}"


def test_patched_sources_compile_as_python(release):
    version, place = release
    engine.apply(place)
    for file in series.read(version).manifest.files:
        if file.path.endswith(".py"):
            compile((place / file.path).read_text(), file.path, "exec")


def test_git_leaves_the_bytes_of_a_series_alone():
    if not (REPO / ".git").exists():
        pytest.skip("this is no git checkout")
    paths = [str(path) for path in series.ROOT.glob("*/*")]
    done = subprocess.run(["git", "check-attr", "text", *paths], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.count("text: unset") == len(paths) > 0
