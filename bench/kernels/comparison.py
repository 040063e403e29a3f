"""A kernel's time against the floor, the law of our kernel, and other kernels."""

from typing import Literal

from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from lowp.paged.shapes import Shape

LAW_US, LAW_SHARE = 3.5, 0.93  # the law: a call may take LAW_US, and its bytes at LAW_SHARE of the ceiling
ACCURATE_REL_L2 = 4e-3  # the error of a kernel that keeps BF16 accuracy; the bound of the tests in kernels_tests


def floor_us(row: KernelRow, ceiling: float) -> float:
    """Microseconds that the bytes of a call take at the read ceiling."""
    return row.kv_bytes / ceiling * 1e6


def law_us(row: KernelRow, ceiling: float) -> float:
    """Microseconds that a call may take."""
    return LAW_US + floor_us(row, ceiling) / LAW_SHARE


def ours(result: KernelsResult, kv_format: str) -> list[KernelRow]:
    """Our kernel's measured rows."""
    return [row for row in result.rows if (row.kernel, row.kv_format) == (OURS, kv_format) and not row.error]


def plain(rows: list[KernelRow]) -> list[KernelRow]:
    """The rows at plain shapes; all, if there are none."""
    return [row for row in rows if row.shape.plain] or rows


def peers_at(result: KernelsResult, shape: Shape, *kv_formats: str) -> list[KernelRow]:
    """Other kernels' measured rows at a shape with these caches, the fastest first."""
    peers = (row for row in result.rows if row.kernel != OURS and row.kv_format in kv_formats)
    return sorted((row for row in peers if not row.error and row.shape == shape), key=lambda row: row.time_us)


def accurate_peer(result: KernelsResult, shape: Shape, *kv_formats: str) -> KernelRow | None:
    """The fastest other kernel at a shape whose error is at most ACCURATE_REL_L2."""
    return next((row for row in peers_at(result, shape, *kv_formats) if row.rel_l2 <= ACCURATE_REL_L2), None)


def verdict(row: KernelRow, base: KernelRow) -> Literal["faster", "slower", "equal"]:
    """A row against another; equal where their samples overlap."""
    if max(row.samples_us) < min(base.samples_us):
        return "faster"
    return "slower" if min(row.samples_us) > max(base.samples_us) else "equal"
