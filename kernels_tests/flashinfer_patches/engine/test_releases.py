"""Other releases and patch sets: upgraded, reverted, reinstalled over a patched package."""

import shutil

from flashinfer_patches import engine
from flashinfer_patches.state import STORE
from kernels_tests.flashinfer_patches.engine.refusal import refused
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    HEADER,
    NEWER,
    SINKS,
    expected,
    install,
    package_tree,
    tree,
    write,
    write_series,
)


def test_a_newer_patch_set_replaces_an_older_patch_set(site, root):
    old = engine.apply(site, root)
    write_series(root, CLEAN, NEWER)
    between = engine.status(site, root)
    assert between.state == "partial" and set(between.files.values()) == {"older", "clean"}
    new = engine.apply(site, root)
    assert new.state == "applied" and new.patch_set != old.patch_set
    assert package_tree(site) == expected(NEWER), "files of the older patch set alone are removed"
    assert HEADER not in {str(p.relative_to(site / STORE / "originals")) for p in (site / STORE).rglob("*.cuh")}
    engine.revert(site, root)
    assert tree(site) == expected(CLEAN)


def test_an_older_patch_set_can_be_reverted(site, root):
    engine.apply(site, root)
    write_series(root, CLEAN, NEWER)
    engine.revert(site, root)
    assert tree(site) == expected(CLEAN)


def test_an_older_patch_set_without_its_originals_is_refused(site, root):
    engine.apply(site, root)
    write_series(root, CLEAN, NEWER)
    shutil.rmtree(site / STORE / "originals")
    assert "originals" in refused("edited", engine.apply, site, root).message


def test_a_release_installed_over_a_patched_release(site, root):
    """pip removes its own files: our created file and the originals stay, and are recognised."""
    later = {path: data + b"\n" for path, data in CLEAN.items()}
    write_series(root, later, later | {DECODE: b"z = 3\n"}, version="0.7.2.post1")
    engine.apply(site, root)
    install(site, later, "0.7.2.post1")
    assert engine.status(site, root).state == "partial" and (site / SINKS).exists()
    engine.apply(site, root)
    assert package_tree(site) == expected(later | {DECODE: b"z = 3\n"}, "0.7.2.post1")
    engine.revert(site, root)
    assert tree(site) == expected(later, "0.7.2.post1")


def test_a_created_file_that_a_later_release_adopted_stays(site, root):
    engine.apply(site, root)
    install(site, CLEAN | {SINKS: APPLIED[SINKS]}, "0.8.0")
    write(site, {"flashinfer_python-0.8.0.dist-info/RECORD": f"{SINKS},sha256=x,9\n".encode()})
    engine.revert(site, root)
    assert package_tree(site) == expected(CLEAN | {SINKS: APPLIED[SINKS]}, "0.8.0") and not (site / STORE).exists()


def test_leftovers_in_an_unknown_release_can_be_reverted(site, root):
    engine.apply(site, root)
    install(site, version="0.8.0")
    refused("version", engine.apply, site, root)
    assert engine.revert(site, root).state == "unknown version"
    assert tree(site) == expected(CLEAN, "0.8.0")


def test_a_reinstalled_release_is_finished(site, root):
    engine.apply(site, root)
    install(site)
    assert engine.status(site, root).state == "partial", "the created file is left"
    engine.apply(site, root)
    assert package_tree(site) == expected(APPLIED)
    install(site)
    engine.revert(site, root)
    assert tree(site) == expected(CLEAN)


def test_a_partially_applied_package_without_originals_can_be_applied_and_reverted(site, root, tmp_path):
    write(site, {DECODE: APPLIED[DECODE]})
    copy = tmp_path / "copy"
    shutil.copytree(site, copy)
    assert engine.status(site, root).state == "partial"
    engine.apply(site, root)
    assert package_tree(site) == expected(APPLIED)
    engine.revert(copy, root)
    assert tree(copy) == expected(CLEAN)
