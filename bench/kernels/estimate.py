"""About how long a run takes, before it starts: bytes, and assumed times of what the host does."""

from bench.kernels import grid
from bench.kernels.grid import Point
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRun
from bench.kernels.timing import FEW, MANY

START_S = 15  # imports, read ceiling, large caches
BUILD_S = {"flashinfer": 75, "vllm": 5, "lowp": 15}  # of each library whose kernels are measured
INPUTS_S = 0.02  # of a shape: block table, queries, exact answers
EXACT_S_PER_TOKEN = 1.2e-6  # of the longest sequence
CALL_S = 60e-6  # host time of a call, made or captured
GRAPH_S = 4e-3  # to instantiate a graph, and to start its replays
GRAPHS = {"standard": 1, "server": 2, "random": 2}
OVER_EXPECTED = 2  # times: peers are slower than the law


def seconds(run: KernelsRun) -> float:
    """Seconds of a run that measures everything anew."""
    measured = {kernel.source for point in run.points for kernel in run.kernels if not kernel.skip_reason(point)}
    builds = sum(BUILD_S[source] for source in measured)
    return START_S + builds + sum(point_seconds(run, point) for point in run.points)


def point_seconds(run: KernelsRun, point: Point) -> float:
    """Seconds of all kernels at one point."""
    kernels = [kernel for kernel in run.kernels if not kernel.skip_reason(point)]
    inputs = INPUTS_S + EXACT_S_PER_TOKEN * point.shape.context
    return inputs + sum(len(kernel.settings) * _setting_seconds(point, kernel) for kernel in kernels)


def _setting_seconds(point: Point, kernel: DecodeKernel) -> float:
    graphs, replays = GRAPHS[point.grid], MANY if point.grid == "standard" else FEW
    calls = grid.layers(point.shape) if point.grid == "standard" else grid.served_calls(point.shape)
    replay_s = calls * OVER_EXPECTED * grid.expected_us(point.shape, kernel.kv_format) * 1e-6
    most = replays.budget_ms * 1e-3 / replay_s
    count = replays.warmups + min(replays.most, max(replays.least, most))
    return graphs * (GRAPH_S + calls * 2 * CALL_S + count * replay_s)
