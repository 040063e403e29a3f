"""The series: each patch has its reason, and the real wheel plus the series gives the manifest's hashes."""

import shutil

import pytest

from flashinfer_patches import make_manifest, series
from flashinfer_patches.errors import Problem
from kernels_tests.flashinfer_patches.conftest import VERSIONS


def test_every_release_is_tested():
    assert series.versions() == VERSIONS


@pytest.mark.parametrize("release", VERSIONS)
def test_every_patch_has_a_number_and_a_reason(release):
    for number, patch in enumerate(series.read(release).patches, 1):
        assert patch.name.startswith(f"{number:04d}-")
        header = patch.read_text().split("\n---\n")[0]
        for part in ("Subject: ", "\nWhy: ", "\nUpstream: ", "\nGoes when: "):
            assert part in header, (patch.name, part)


def test_the_wheel_and_the_series_give_the_manifest(version, pristine):
    written = (series.ROOT / version / "manifest").read_text()
    assert written == make_manifest.text(make_manifest.make(version, pristine))


def test_a_changed_wheel_gives_no_manifest(version, pristine, tmp_path):
    for file in series.read(version).manifest.files:
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        if file.before:
            shutil.copyfile(pristine / file.path, tmp_path / file.path)
    changed = tmp_path / "flashinfer" / "decode.py"
    changed.write_text(
        changed.read_text().replace("        k_cache, v_cache = _unpack_paged_kv_cache", "        k, v = x")
    )
    with pytest.raises(Problem) as caught:
        make_manifest.make(version, tmp_path)
    assert caught.value.kind == "series"
