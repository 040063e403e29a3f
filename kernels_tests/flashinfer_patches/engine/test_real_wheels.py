"""The shipped series on the released wheels, which are downloaded into .flashinfer."""

import base64
import csv
import os
import shutil
import subprocess

import pytest

from flashinfer_patches import engine, fetch, package, series
from flashinfer_patches.state import STORE
from kernels_tests.flashinfer_patches.engine import worlds
from vllm_launch.provenance import REPO


def test_every_series_has_its_wheel():
    assert series.versions() == list(fetch.WHEELS)


@pytest.fixture(params=fetch.WHEELS)
def release(request):
    """A release, and a copy of its wheel to patch: hard links, as uv installs."""
    folder = fetch.FOLDER / request.param / f"test-{os.getpid()}"
    shutil.copytree(fetch.pristine(request.param), folder, copy_function=os.link)
    yield request.param, folder
    shutil.rmtree(folder)


def identities(folder):
    """Map each path of the package to (inode, size); hashes of thousands of files would take too long."""
    inodes = {}
    for top, _, names in os.walk(folder / "flashinfer"):
        for name in names:
            status = os.lstat(os.path.join(top, name))
            inodes[os.path.relpath(os.path.join(top, name), folder)] = (status.st_ino, status.st_size)
    return inodes


@pytest.mark.long
def test_apply_and_revert(release):
    version, folder = release
    clean = identities(folder)
    files = {file.path: file for file in series.read(version).manifest.files}
    assert engine.check(folder).state == "clean" and identities(folder) == clean
    assert engine.apply(folder).patch_set == series.read(version).manifest.patch_set
    applied = identities(folder)
    assert {path for path in applied.keys() | clean.keys() if applied.get(path) != clean.get(path)} == set(files)
    assert engine.apply(folder).state == "applied" and identities(folder) == applied
    engine.revert(folder)
    reverted = identities(folder)
    assert reverted.keys() == clean.keys() and not (folder / STORE).exists()
    assert {path for path in clean if reverted[path] != clean[path]} <= set(files), (
        "the files outside of the series are the same"
    )
    assert {path: package.sha256(package.content(folder / path)) for path in files} == {
        path: file.before for path, file in files.items()
    }
    assert engine.status(fetch.pristine(version)).state == "clean", "the hard-linked copy is as it was"


@pytest.mark.long
def test_a_linked_package_finds_its_own_headers(release, tmp_path):
    """FlashInfer looks beside its resolved jit/env.py: with links it would compile those of another package."""
    version, _ = release
    source = fetch.pristine(version)
    before = identities(source)
    site = worlds.link(source, tmp_path / "site")
    engine.apply(site)
    assert (site / "flashinfer/jit/env.py").resolve().parents[2] == site
    assert not any(path.is_symlink() for path in (site / "flashinfer").rglob("*"))
    assert identities(source) == before and engine.status(source).state == "clean"
    assert engine.revert(site).state == "clean"


def test_hashes_before_are_those_of_the_wheels_record(release):
    version, folder = release
    (record,) = folder.glob("*.dist-info/RECORD")
    recorded = {row[0]: row[1] for row in csv.reader(record.read_text().splitlines())}
    for file in series.read(version).manifest.files:
        if file.before is None:
            assert file.path not in recorded
        else:
            digest = base64.urlsafe_b64encode(bytes.fromhex(file.before)).rstrip(b"=").decode()
            assert recorded[file.path] == f"sha256={digest}"


def test_patched_sources_compile_as_python(release):
    version, folder = release
    engine.apply(folder)
    for file in series.read(version).manifest.files:
        if file.path.endswith(".py"):
            compile((folder / file.path).read_text(), file.path, "exec")


def test_git_does_not_convert_the_files_of_a_series():
    if not (REPO / ".git").exists():
        pytest.skip("this is no git checkout")
    paths = [str(path) for path in series.ROOT.glob("*/*")]
    process = subprocess.run(["git", "check-attr", "text", *paths], cwd=REPO, capture_output=True, text=True)
    assert process.stdout.count("text: unset") == len(paths) > 0
