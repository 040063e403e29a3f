"""A kernel's time against the floor, the law of our kernel, and other kernels."""

from collections import defaultdict
from collections.abc import Iterable

from bench.kernels.grid import QUANTISED
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow
from lowp.paged.shapes import Shape

LAW_US, LAW_SHARE = 3.5, 0.93  # the law: a call may take LAW_US, and its bytes at LAW_SHARE of the ceiling
BETWEEN_US = 5.0  # instead of LAW_US where another kernel stands between two calls
LAW = f"{LAW_US:g} us + bytes / ({LAW_SHARE:g} x ceiling)"
ACCURATE_REL_L2 = 4e-3  # the error of a kernel that keeps BF16 accuracy; the bound of the tests in kernels_tests


def floor_us(row: KernelRow, ceiling: float) -> float:
    """Microseconds that the bytes of a call take at the read ceiling."""
    return row.kv_bytes / ceiling * 1e6


def law_us(row: KernelRow, ceiling: float, overhead_us: float = LAW_US) -> float:
    """Microseconds that a call may take."""
    return overhead_us + floor_us(row, ceiling) / LAW_SHARE


def ours(rows: list[KernelRow], kv_format: str = QUANTISED) -> list[KernelRow]:
    """Our kernel's measured rows with one storage format, by default FP8."""
    return [row for row in rows if (row.kernel, row.kv_format) == (OURS, kv_format) and not row.error]


def plain(rows: list[KernelRow]) -> list[KernelRow]:
    """The rows at plain shapes; all, if there are none."""
    return [row for row in rows if row.shape.plain] or rows


def by_shape(rows: Iterable[KernelRow]) -> dict[Shape, list[KernelRow]]:
    """The measured rows at each shape, the fastest first; no entry where there are none."""
    groups = defaultdict(list)
    for row in sorted((row for row in rows if not row.error), key=lambda row: row.time_us):
        groups[row.shape].append(row)
    return dict(groups)


def peers_by_shape(rows: Iterable[KernelRow]) -> dict[Shape, list[KernelRow]]:
    """Other kernels' measured rows at each shape, with any cache, as `by_shape`."""
    return by_shape(row for row in rows if row.kernel != OURS)
