"""The series: each patch says why it exists, and the real wheel plus the series gives the manifest's hashes."""

import json
import shutil
import subprocess

import pytest

from flashinfer_patches import make_manifest
from kernels_tests.flashinfer_patches.conftest import VERSIONS


@pytest.mark.parametrize("release", VERSIONS)
def test_every_patch_is_listed_and_says_why(release):
    listed = make_manifest.patches(release)
    assert sorted(listed) == sorted((make_manifest.SERIES / release).glob("*.patch"))
    for number, patch in enumerate(listed, 1):
        assert patch.name.startswith(f"{number:04d}-")
        header = patch.read_text().split("\n---\n")[0]
        for part in ("Subject: ", "\nWhy: ", "\nUpstream: ", "\nGoes when: "):
            assert part in header, (patch.name, part)


def test_the_wheel_and_the_series_give_the_manifest(version, pristine):
    written = json.loads((make_manifest.SERIES / version / "manifest").read_text())
    assert written == make_manifest.manifest(version, pristine)


def test_another_base_does_not_take_the_series(version, pristine, tmp_path):
    base, staged = tmp_path / "base", tmp_path / "staged"
    for name in make_manifest.touched(version):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        if (pristine / name).exists():
            shutil.copyfile(pristine / name, base / name)
    staged.mkdir()
    changed = base / "flashinfer" / "decode.py"
    changed.write_text(
        changed.read_text().replace("        k_cache, v_cache = _unpack_paged_kv_cache", "        k, v = x")
    )
    with pytest.raises(subprocess.CalledProcessError):
        make_manifest.stage(version, base, staged)


def test_staging_works_inside_a_repository(version, pristine, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    staged = tmp_path / "a" / "b"
    staged.mkdir(parents=True)
    make_manifest.stage(version, pristine, staged)
    assert "use_sinks" in (staged / "flashinfer" / "decode.py").read_text()
