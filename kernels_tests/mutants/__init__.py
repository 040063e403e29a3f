"""A vLLM plugin for tests: it breaks the CPU attention, to see which accuracy gate fails.

A test writes its entry point of group `vllm.general_plugins`. A file names the mutant, so one server runs them all.
"""


def register() -> None:
    """Make our CPU backends return the mutant implementation, whichever plugin vLLM loads first."""
    from kernels_tests.mutants.attention import MutantImpl
    from vllm_launch.plugin.cpu_cache import RoundingCpuBackend
    from vllm_launch.plugin.cpu_widen import WideningCpuBackend

    for backend in (RoundingCpuBackend, WideningCpuBackend):
        backend.get_impl_cls = staticmethod(lambda: MutantImpl)
