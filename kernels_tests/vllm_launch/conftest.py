"""A simulated machine on which every profile fits."""

import pytest

from kernels_tests.vllm_launch.machines import HOST
from vllm_launch import plan, software
from vllm_launch.doctor import facts as doctor_facts


def detect(device):
    if device == "gpu":
        raise LookupError("no NVIDIA driver answers")
    return HOST


@pytest.fixture
def fit_machine(monkeypatch, tmp_path):
    """Simulate a machine without a GPU that passes every check, with an empty home and working directory."""
    for module in (plan, doctor_facts):
        monkeypatch.setattr(module, "detect", detect)
    monkeypatch.setattr(software, "vllm_build", lambda: ("cpu", "0.32.0"))
    monkeypatch.setattr(software, "check_libraries", lambda _device: None)
    monkeypatch.setattr(software, "check_llama_benchy", lambda: None)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"
