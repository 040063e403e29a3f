"""The features of a machine's CPU, from /proc/cpuinfo."""

from pathlib import Path

import pytest

from kernels_tests.vllm_launch import machines
from vllm_launch import machine
from vllm_launch.plugin import CPU_ATTENTION, cpu_attention

CPU = machines.HOST


@pytest.mark.parametrize(
    ("flags", "avx2", "fp8_kernels"),
    [
        ("fpu sse4_2 avx f16c", False, False),
        ("fpu avx avx2 f16c fma", True, False),
        ("fpu avx avx2 f16c avx512f avx512cd", True, False),
        ("avx2 f16c avx512f avx512dq avx512cd avx512bw avx512vl", True, True),
        ("avx2 f16c amx_bf16 amx_tile amx_int8", True, True),
    ],
)
def test_features_from_cpu_flags(monkeypatch, flags, avx2, fp8_kernels):
    text = f"processor\t: 0\nmodel name\t: a CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda _path: text)
    detected = machine.detect("cpu")
    assert (detected.name, detected.avx2, detected.fp8_kernels) == ("a CPU", avx2, fp8_kernels)


def test_machine_and_plugin_agree_on_fp8_kernels(monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.delenv(CPU_ATTENTION, raising=False)
    assert machine.detect("cpu").fp8_kernels == (cpu_attention() == "native")


def test_the_machine_of_an_older_result_is_still_read():
    old = CPU.model_dump(exclude={"avx2", "fp8_kernels"}) | {"fp8_cache": False}
    assert machine.Machine.model_validate(old) == CPU.model_copy(update={"fp8_kernels": False})
    assert machine.Machine.model_validate_json(CPU.model_dump_json()) == CPU
