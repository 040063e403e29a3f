"""Packages linked into an installer's cache: only this environment is patched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashinfer_patches import engine, locking, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.state import LOCK, STORE
from kernels_tests.flashinfer_patches.engine.refusal import refused
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    HEADER,
    expected,
    install,
    link,
    package_tree,
    tree,
    wheel,
)

# As flashinfer/jit/env.py finds the headers that it compiles.
BESIDE = {"flashinfer/env.py": b"from pathlib import Path\nROOT = Path(__file__).resolve().parents[1]\n"}
LINKED = CLEAN | BESIDE


def imported(site, monkeypatch):
    """Make the package in `site` the installed one."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "flashinfer", raising=False)
    assert package.installed() == site


def root_of(site):
    """Return the folder in which the package in `site` looks for its headers."""
    code = "from flashinfer import env; print(env.ROOT)"
    return subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def source(tmp_path):
    """An installer's cache, with a clean package."""
    return install(tmp_path / "source", LINKED)


@pytest.mark.parametrize("hard_links", ["can be made", "cannot"])
def test_the_installed_package_is_patched_and_its_link_targets_are_not(source, root, tmp_path, monkeypatch, hard_links):
    site, sibling = link(source, tmp_path / "site"), link(source, tmp_path / "sibling")
    imported(site, monkeypatch)
    if hard_links == "cannot":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    assert engine.check(root=root).state == "clean" and tree(site) == expected(LINKED)
    applied = engine.apply(root=root)
    assert applied.target == site and applied.state == "applied"
    assert package_tree(site) == expected(APPLIED | BESIDE)
    assert tree(source) == tree(sibling) == expected(LINKED)
    assert engine.status(sibling, root).state == "clean"
    assert Path(root_of(site)) == site, "FlashInfer would compile the headers of another package"
    engine.revert(root=root)
    assert tree(site) == tree(source) == expected(LINKED)


def test_new_links_are_replaced_again(source, root, tmp_path):
    """After a reinstall of some files, or an interrupted apply."""
    site = link(source, tmp_path / "site")
    engine.apply(site, root)
    (site / "flashinfer/env.py").unlink()
    (site / "flashinfer/env.py").symlink_to(source / "flashinfer/env.py")
    engine.apply(site, root)
    assert not any(path.is_symlink() for path in site.rglob("*"))


def test_a_dangling_link_is_unchanged(source, root, tmp_path):
    site = link(source, tmp_path / "site")
    (site / "flashinfer/stale.py").symlink_to(tmp_path / "gone")
    engine.apply(site, root)
    assert os.readlink(site / "flashinfer/stale.py") == str(tmp_path / "gone")


def test_a_source_that_an_older_version_patched(source, root, tmp_path):
    """Older versions followed the links: the patched source is reported, and unchanged until a revert of it."""
    site, sibling = link(source, tmp_path / "site"), link(source, tmp_path / "sibling")
    engine.apply(source, root)
    patched = tree(source)
    status = engine.status(site, root)
    assert status.state == "partial" and status.patched_source == source, "only the source has the created file"
    assert engine.apply(site, root).patched_source == source
    assert package_tree(site) == expected(APPLIED | BESIDE) and tree(source) == patched
    engine.revert(sibling, root)
    assert package_tree(sibling) == expected(LINKED) and tree(source) == patched
    engine.revert(engine.status(sibling, root).patched_source, root)
    assert tree(source) == tree(sibling) == expected(LINKED) and package_tree(site) == expected(APPLIED | BESIDE)
    assert engine.status(sibling, root).patched_source is None
    engine.revert(site, root)
    assert tree(site) == expected(LINKED)


@pytest.mark.parametrize("folder", ["flashinfer", "flashinfer/data", STORE, f"{STORE}/originals", f"{STORE}/manifests"])
def test_a_linked_folder_is_refused(site, root, tmp_path, folder):
    if folder.startswith(STORE):
        engine.apply(site, root)
    (site / folder).rename(tmp_path / "shared")
    (site / folder).symlink_to(tmp_path / "shared")
    before = tree(tmp_path / "shared")
    engine.status(site, root)
    for action in (engine.check, engine.apply, engine.revert):
        if folder.startswith(STORE) or action is not engine.revert:  # a clean package has nothing to revert
            message = refused("target", action, site, root).message
            assert str(site / folder) in message and str(tmp_path / "shared") in message
    assert tree(tmp_path / "shared") == before


def test_folders_above_may_be_linked(site, root, tmp_path, monkeypatch):
    (tmp_path / "home").symlink_to(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "home" / "site"))
    monkeypatch.delitem(sys.modules, "flashinfer", raising=False)
    assert engine.apply(root=root).target == site
    assert package_tree(site) == expected(APPLIED)
    engine.revert(tmp_path / "home" / "site", root)
    assert tree(site) == expected(CLEAN)


def test_no_link_is_followed_to_write(site, root, tmp_path):
    """At the paths that apply writes before a rename."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine\n")
    original = Path("originals", DECODE)
    temporary = original.with_name(f".{original.name}.{os.getpid()}")
    for name in (temporary, f"staged/{DECODE}", f"staged/{HEADER}"):
        (site / STORE / name).parent.mkdir(parents=True, exist_ok=True)
        (site / STORE / name).symlink_to(precious)
    engine.apply(site, root)
    assert precious.read_bytes() == b"mine\n" and package_tree(site) == expected(APPLIED)


@pytest.mark.parametrize("content", [b"my notes", b"pid 7 (x)", b"pid 7 (x) since 10:00:00\nmine", b"\0" * 9000])
def test_a_file_of_the_user_is_no_lock(tmp_path, content):
    path = tmp_path / "lock"
    path.write_bytes(content)
    with pytest.raises(Problem) as caught, locking.held(path, "a test", 0):
        pytest.fail("the lock was taken")
    assert caught.value.kind == "lock" and str(path) in caught.value.message
    assert path.read_bytes() == content


@pytest.mark.parametrize("left", [b"", b"pid 7 (fp8-sinks patch apply) since 10:00:00"])
def test_the_file_of_a_killed_holder_is_reused(tmp_path, left):
    path = tmp_path / "lock"
    path.write_bytes(left)
    with locking.held(path, "a test", 0):
        assert f"pid {os.getpid()} (a test)" in path.read_text()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "a hard link", "a pipe", "a folder"])
def test_only_a_plain_file_is_a_lock(site, root, tmp_path, kind):
    precious, lock = tmp_path / "precious", site / LOCK
    if kind != "a link to nothing":
        precious.write_bytes(b"mine\n")
    if kind in ("a link", "a link to nothing"):
        lock.symlink_to(precious)
    elif kind == "a hard link":
        os.link(precious, lock)
    elif kind == "a pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(Problem) as caught, locking.held(lock, "a test", 0):
        pytest.fail("the lock was taken")
    assert caught.value.kind == "disk" and str(lock) in caught.value.message
    refused("disk", engine.apply, site, root)
    assert os.path.lexists(lock) and package_tree(site) == expected(CLEAN)
    assert precious.read_bytes() == b"mine\n" if kind != "a link to nothing" else not precious.exists()


@pytest.fixture
def uv(tmp_path):
    """A function that makes an environment with the release, linked to uv's cache; returns its site-packages."""
    program = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "no uv: install locks/dev.txt"
    links = wheel(tmp_path / "index", LINKED).parent
    common = ("--quiet", "--offline", "--no-config", "--cache-dir", str(tmp_path / "uv cache"))

    def install_into(name, mode):
        folder = tmp_path / name
        subprocess.run([program, "venv", *common, "--python", sys.executable, str(folder)], check=True)
        words = ["--no-index", "--find-links", str(links), "--link-mode", mode, "--python", str(folder / "bin/python")]
        subprocess.run([program, "pip", "install", *common, *words, "flashinfer-python"], check=True)
        (site,) = (folder / "lib").glob("python3*/site-packages")
        return site

    return install_into


@pytest.mark.parametrize("mode", ["symlink", "hardlink"])
def test_uv_environments_are_patched_separately(uv, root, tmp_path, monkeypatch, mode):
    site, sibling = uv("site", mode), uv("sibling", mode)
    assert (site / DECODE).is_symlink() if mode == "symlink" else (site / DECODE).stat().st_nlink > 1
    (source,) = (tmp_path / "uv cache").rglob(DECODE)
    cached = source.parents[1]
    before = tree(cached)
    imported(site, monkeypatch)
    assert engine.apply(root=root).target == site
    assert package_tree(site) == expected(APPLIED | BESIDE)
    assert package_tree(sibling) == expected(LINKED) and tree(cached) == before
    assert engine.status(sibling, root).state == "clean" and Path(root_of(site)) == site
    engine.revert(root=root)
    assert package_tree(site) == expected(LINKED) and not (site / STORE).exists() and tree(cached) == before
    assert package_tree(uv("third", mode)) == expected(LINKED), "a later environment of uv is clean"


def test_a_failed_apply_leaves_the_links(source, root, tmp_path, monkeypatch):
    def fails(*_):
        raise Problem("git", "no git", "install git")

    site = link(source, tmp_path / "site")
    monkeypatch.setattr(engine.staging, "forward", fails)
    refused("git", engine.apply, site, root)
    assert (site / DECODE).is_symlink() and not (site / STORE).exists()
