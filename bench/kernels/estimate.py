"""About how long a run takes, before it starts: bytes, and assumed times of builds and of the host."""

from bench.kernels import grid
from bench.kernels.grid import Point
from bench.kernels.measure import key
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRun
from bench.kernels.timing import BRIEF, THOROUGH

START_S = 15  # imports, read ceiling, large caches
FLASHINFER_BUILD_S = 40  # of a variant; kernels build at once, each its variants in turn
OWN_BUILDS_S = 15
INPUTS_S = 0.02  # of a shape: block table, queries, exact answers
EXACT_S_PER_TOKEN = 1.2e-6  # of the longest sequence
CALL_S = 60e-6  # host time of a call, made or captured
GRAPH_S = 4e-3  # to instantiate a graph, and to start its replays
OVER_EXPECTED = 2  # times: peers are slower than the law


def seconds(run: KernelsRun) -> float:
    """Seconds of a run that measures everything anew."""
    return START_S + _build_seconds(run) + sum(point_seconds(run, point) for point in run.points)


def point_seconds(run: KernelsRun, point: Point) -> float:
    """Seconds of all kernels at one point."""
    kernels = [kernel for kernel in run.kernels if not kernel.skip_reason(point)]
    inputs = INPUTS_S + EXACT_S_PER_TOKEN * point.shape.context
    return inputs + sum(len(kernel.settings) * _setting_seconds(point, kernel) for kernel in kernels)


def _build_seconds(run: KernelsRun) -> float:
    """A window is no variant of its own of the slowest kernel, FA2."""
    flashinfer = [kernel for kernel in run.kernels if kernel.source == "flashinfer"]
    variants = [
        {key(kernel, point.shape)._replace(windowed=False) for point in run.points if not kernel.skip_reason(point)}
        for kernel in flashinfer
    ]
    return OWN_BUILDS_S + FLASHINFER_BUILD_S * max(map(len, variants), default=0)


def _setting_seconds(point: Point, kernel: DecodeKernel) -> float:
    standard = point.grid == "standard"
    graphs, replays = (1, THOROUGH) if standard else (2, BRIEF)
    calls = grid.layers(point.shape) if standard else grid.served_calls(point.shape)
    replay_s = calls * OVER_EXPECTED * grid.expected_us(point.shape, kernel.kv_format) * 1e-6
    count = replays.warmups + min(replays.most, max(replays.least, replays.budget_ms * 1e-3 / replay_s))
    return graphs * (GRAPH_S + calls * 2 * CALL_S + count * replay_s)
