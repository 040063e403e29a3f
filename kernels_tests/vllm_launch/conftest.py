"""Simulated machines, the plans of servers on them, and users' profiles and scale files."""

from types import SimpleNamespace

import pytest

from kernels_tests.vllm_launch.machines import H200, HOST
from vllm_launch import certificate, plan, profile, software
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


@pytest.fixture
def simulate(monkeypatch):
    """A function that simulates a machine, its vLLM and its certificate."""

    def simulated(machine=H200, version="0.33.0", certified=None):
        monkeypatch.setattr(plan, "detect", lambda _device: machine)
        device = "cpu" if machine.family == "cpu" else "gpu"
        monkeypatch.setattr(plan.software, "vllm_build", lambda: (device, version))
        monkeypatch.setattr(plan.software, "check_libraries", lambda _device: None)
        monkeypatch.setattr(certificate, "decoder", lambda: certified)

    return simulated


@pytest.fixture
def profile_file(tmp_path):
    """A function that writes a user's profile and returns its path."""

    def written(text, name="mine", folder=tmp_path):
        path = folder / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return written


@pytest.fixture
def served(model_folder):
    """The folder of the served model."""
    return model_folder()


@pytest.fixture
def plan_with(simulate, tmp_path, served):
    """A function that plans a server of a profile, by name or path, on a simulated machine."""

    def make(name="fp8", machine=H200, version="0.33.0", certified=None, folder=None, overrides=()):
        simulate(machine, version, certified)
        options = {"port": 0, "cache_root": tmp_path / "cache", "overrides": list(overrides)}
        return plan.make(profile.load(name), model_path=str(folder or served), **options)

    return make


@pytest.fixture
def scale_file(tmp_path, served):
    """A scale file for the served model."""
    import torch

    from kernels_tests.vllm_launch import scale_files

    path, k, v = tmp_path / "scales.safetensors", torch.ones(2), torch.ones(2)
    written = scale_files.write(path, (served / "config.json").read_bytes(), [k], [v])
    return SimpleNamespace(path=path, sha256=written.sha256)


@pytest.fixture
def int8_scale_file(tmp_path, served):
    """A scale file of int8 for the served model."""
    import torch

    from kernels_tests.vllm_launch import scale_files

    path, k, v = tmp_path / "int8.safetensors", torch.rand(2, 64) + 0.01, torch.rand(2) + 0.01
    written = scale_files.write(path, (served / "config.json").read_bytes(), [k], [v])
    return SimpleNamespace(path=path, sha256=written.sha256, k=k, v=v)


@pytest.fixture
def make_plan(monkeypatch, tmp_path, model_folder):
    """A function that plans a server on a simulated machine with a simulated vLLM build."""

    def make(machine=HOST, build=("cpu", "0.32.0"), folder=None, name="fp8", **options):
        monkeypatch.setattr(plan, "detect", lambda device: machine)
        monkeypatch.setattr(plan.software, "vllm_build", lambda: build)
        monkeypatch.setattr(plan.software, "check_libraries", lambda _device: None)
        options = {"port": 0, "cache_root": tmp_path / "cache"} | options
        return plan.make(profile.load(name), model_path=str(folder or model_folder()), **options)

    return make
