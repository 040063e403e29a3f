"""The doctor reports an error exactly if `bench serving baseline fp8` refuses, with one requirement broken each."""

import shutil

import pytest
from click.testing import CliRunner

from flashinfer_patches.errors import ENVIRONMENT, EXIT_CODES, Problem
from fp8_sinks.cli import main
from kernels_tests.vllm_launch.machines import GIB
from vllm_launch import model, plan, server, software
from vllm_launch.doctor import facts as doctor_facts

CHECK_LLAMA_BENCHY = software.check_llama_benchy


def refuse(*_):
    raise Problem("software", "it is not here", "install it")


def llama_benchy(patch):
    patch.setattr(software, "check_llama_benchy", CHECK_LLAMA_BENCHY)
    version = software.version
    patch.setattr(software, "version", lambda name: None if name == "llama-benchy" else version(name))


def libraries(patch):
    patch.setattr(software, "check_libraries", refuse)


def package(patch):
    patch.setattr(software, "check_installed", refuse)


def python(patch):
    patch.setattr(software, "PYTHONS", ((3, 7), (3, 8)))


def vllm(patch):
    patch.setattr(software, "vllm_build", refuse)


def machine_with(patch, **update):
    for module in (plan, doctor_facts):
        detect = module.detect
        patch.setattr(module, "detect", lambda device, was=detect: was(device).model_copy(update=update))


def memory(patch):
    machine_with(patch, free_bytes=GIB)


def old_cpu(patch):
    machine_with(patch, avx2=False, fp8_kernels=False)


def no_cpu_attention(patch):
    patch.setenv("FP8_SINKS_CPU_ATTENTION", "x")


def native_attention_without_its_kernels(patch):
    machine_with(patch, fp8_kernels=False)
    patch.setenv("FP8_SINKS_CPU_ATTENTION", "native")


def default_model(patch):
    patch.setattr(model, "EMBEDDED", model.EMBEDDED.with_name("gone"))
    of_default = model.of_default
    patch.setattr(model, "of_default", lambda name: of_default("gone" if name == "tiny_gpt_oss" else name))


def run_folder(patch):
    open("runs", "w").close()


def disk(patch):
    usage = shutil.disk_usage(".")._replace(free=1 << 20)
    patch.setattr(shutil, "disk_usage", lambda _path: usage)


@pytest.mark.parametrize(
    "breaks",
    [
        *(llama_benchy, libraries, package, python, vllm, memory, old_cpu, no_cpu_attention),
        *(native_attention_without_its_kernels, default_model, run_folder, disk),
    ],
    ids=lambda f: f.__name__,
)
def test_the_doctor_and_the_main_command_refuse_alike(fit_machine, monkeypatch, breaks):
    breaks(monkeypatch)
    assert outcomes(monkeypatch) == (ENVIRONMENT, "refused")


def test_the_doctor_and_the_main_command_accept_alike(fit_machine, monkeypatch):
    assert outcomes(monkeypatch) == (0, "runs")


def outcomes(patch) -> tuple[int, str]:
    """The doctor's exit code, and whether the main command comes to its first server, which is not started."""
    verdict = CliRunner().invoke(main, ["doctor"])
    assert verdict.exception is None or isinstance(verdict.exception, SystemExit), verdict.exception

    def started(*_, **__):
        raise Problem("server", "this is a test", "none")

    patch.setattr(server, "running", started)
    bench = CliRunner().invoke(main, ["bench", "serving", "baseline", "fp8"])
    assert bench.exit_code in EXIT_CODES.values(), bench.output
    return verdict.exit_code, "runs" if bench.exit_code == EXIT_CODES["server"] else "refused"
