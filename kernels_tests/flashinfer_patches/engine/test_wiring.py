"""A patched FlashInfer in the launcher, the doctor and the results."""

from pathlib import Path

import pytest

from flashinfer_patches import engine, jit_cache
from flashinfer_patches.errors import Problem
from kernels_tests.flashinfer_patches.engine.worlds import APPLIED, DECODE, install, write
from kernels_tests.vllm_launch.machines import about, on_gpu
from vllm_launch import plan, profile, provenance, server, software
from vllm_launch.machine import detect
from vllm_launch.model import EMBEDDED

KERNELS = "FLASHINFER_WORKSPACE_BASE"


@pytest.fixture
def planned(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "vllm_build", lambda: ("cpu", "0.32.0"))
    monkeypatch.setattr(plan, "detect", lambda _: detect("cpu"))
    return lambda: plan.make(profile.load("fp8"), port=1, cache_root=tmp_path / "cache", model_path=str(EMBEDDED))


def test_a_server_gets_the_kernels_of_its_patch_set(installed, planned, tmp_path):
    stock = planned().environment[KERNELS]
    engine.apply()
    patched = planned().environment[KERNELS]
    assert patched == str(jit_cache.workspace(tmp_path / "cache" / "flashinfer")) != stock
    write(installed, {"flashinfer_jit_cache/__init__.py": b""})
    with pytest.raises(Problem) as caught:
        planned()
    assert caught.value.kind == "cache"


def test_no_server_starts_on_a_foreign_kernel_cache(installed, planned, tmp_path, monkeypatch):
    server_plan = planned()
    write(Path(server_plan.environment[KERNELS]), {"theirs.so": b"x"})
    monkeypatch.setattr(server.subprocess, "Popen", lambda *_, **__: pytest.fail("a server was started"))
    with pytest.raises(Problem) as caught, server.running(server_plan, tmp_path, show_status=print):
        pass
    assert caught.value.kind == "cache"


def test_without_flashinfer_the_kernels_have_no_patch_set(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(plan.package, "installed", lambda: None)
    assert planned().environment[KERNELS] == str(tmp_path / "cache" / "flashinfer")


def test_results_record_the_patch_set(installed, monkeypatch):
    def recorded():
        return provenance.collect(detect("cpu"), []).patch

    assert recorded() == "none"
    assert recorded() != engine.apply().patch_set == recorded()
    (installed / DECODE).write_bytes(b"mine\n")
    assert recorded() == "edited"
    install(installed)
    assert recorded() == "partial"
    install(installed, version="0.8.0")
    engine.revert()
    assert recorded() == "none"
    monkeypatch.setattr(provenance.package, "installed", lambda: None)
    assert recorded() == "none"


def test_the_doctor_reports_the_state_of_flashinfer(installed):
    def finding(topic="FlashInfer", **packages):
        (result,) = about(on_gpu(patch=engine.status(), extra_packages=packages), topic)
        return result

    assert finding().value["patch"] == "clean"
    applied = engine.apply()
    patched = finding()
    assert patched.status == "ok" and patched.value["patch"] == "applied" and not patched.value["drops_sinks"]
    assert applied.patch_set in patched.message and "does not use that path" in patched.message
    prebuilt = {"flashinfer-jit-cache": "0.6.14"}
    assert finding("prebuilt kernels", **prebuilt).status == "error"
    (installed / DECODE).write_bytes(b"mine\n")
    assert finding().status == "error" and finding().value["patch"] == "edited"
    install(installed)
    assert finding().status == "error" and "fp8-sinks patch apply" in finding().remedy
    engine.revert()
    assert finding("prebuilt kernels", **prebuilt).status == "warning"
    install(installed, APPLIED | {DECODE: b"# later\n" + APPLIED[DECODE]})
    assert finding().value["patch"] == "superseded"
