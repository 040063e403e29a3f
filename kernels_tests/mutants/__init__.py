"""A vLLM plugin that breaks the CPU attention on purpose, to see which gate notices. For tests only.

Loaded through an entry point of group `vllm.general_plugins` that a test writes. Which mutant is on stands in a
file, so that one server serves them all.
"""


def register() -> None:
    """Let our registered CPU backend make the mutant implementation, whichever plugin vLLM loads first."""
    from kernels_tests.mutants.attention import MutantImpl
    from vllm_launch.plugin.attention.cpu_cache import RoundingCpuBackend
    from vllm_launch.plugin.attention.cpu_widen import WideningCpuBackend

    for backend in (RoundingCpuBackend, WideningCpuBackend):
        backend.get_impl_cls = staticmethod(lambda: MutantImpl)
