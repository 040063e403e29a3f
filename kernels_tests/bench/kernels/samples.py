"""A made-up result of kind `kernels` for tests: no figure in it was measured."""

from bench.kernels.grid import GEOMETRY, kv_bytes
from bench.kernels.result import Build, KernelRow, KernelsResult
from kernels_tests.bench.samples import a_result
from lowp.paged.shapes import Shape, even

# Microseconds with a BF16 and an FP8 cache: slower, slower, faster, faster; and a batch of its own.
FA2 = {
    even(1, 2048): (10.0, 14.0),
    even(1, 8192): (15.0, 18.0),
    even(1, 32768): (29.0, 26.0),
    even(1, 131072): (84.0, 65.0),
    even(8, 8192): (46.0, 40.0),
}


def a_kernel_row(shape: Shape, kernel="fa2-sinks", kv_format="bf16", us=10.0, spread=0.01, **changes) -> KernelRow:
    row = KernelRow(
        kernel=kernel,
        kv_format=kv_format,
        **KernelRow.shape_fields(shape),
        kv_bytes=kv_bytes(shape, kv_format),
        time_us=us,
        samples_us=[us * (1 - spread), us, us * (1 + spread)],
        rel_l2=2.3e-3,
        setting="PDL",
        error=None,
    )
    return row.model_copy(update=changes)


def a_served_row(shape: Shape, kernel="sink-decode", kv_format="e4m3", us=10.0, **changes) -> KernelRow:
    """A compact row, as of the server grid."""
    figures = {"grid": "server", "between_us": us + 1.0, "samples_us": [], "rel_l2": 1.7e-3, "setting": None}
    return a_kernel_row(shape, kernel, kv_format, us, **(figures | changes))


def a_failed_row(shape: Shape, kernel="xqa-sinks", kv_format="e4m3", error="RuntimeError: no | such kernel"):
    nothing = {"time_us": None, "samples_us": [], "rel_l2": None, "setting": None}
    return a_kernel_row(shape, kernel, kv_format, **nothing, error=error)


def fa2_rows() -> list[KernelRow]:
    return [
        a_kernel_row(shape, kv_format=kv_format, us=us)
        for shape, times in FA2.items()
        for kv_format, us in zip(("bf16", "e4m3"), times, strict=True)
    ]


# Ours with an FP8 and a BF16 cache: at 4.4 TB/s the law is 4.01 and 4.53, 68.1 and 135.
OURS_US = {even(1, 2048): (3.3, 4.5), even(32, 8192): (65.0, 130.0)}


def our_rows() -> list[KernelRow]:
    return [
        a_kernel_row(shape, "sink-decode", kv_format, us=us, rel_l2=1.7e-3)
        for shape, times in OURS_US.items()
        for kv_format, us in zip(("e4m3", "bf16"), times, strict=True)
    ]


def a_kernels_result(*rows: KernelRow, identity="20260702-120000", **changes) -> KernelsResult:
    source = a_result(gpu=True, day=2).provenance
    versions = {"flashinfer-python": "0.6.14", "torch": "2.11.0"}
    command = ["fp8-sinks", "bench", "kernels"]
    result = KernelsResult(
        id=identity,
        provenance=source.model_copy(update={"versions": versions, "patch": "0.6.14+0123456789ab", "command": command}),
        geometry=GEOMETRY,
        read_ceiling_bytes_per_s=4.4e12,
        cache_wiped_bytes=0,
        builds=[
            Build(kernel="fa2-sinks", kv_format="e4m3", seconds=21.3, error=None),
            Build(kernel="xqa-sinks", kv_format="e4m3", seconds=None, error="RuntimeError: nvcc | not found"),
        ],
        rows=list(rows or fa2_rows()),
    )
    return result.model_copy(update=changes)
