"""Microseconds per call of a kernel, from replays of CUDA graphs."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from statistics import median
from typing import NamedTuple

MIN_CALLS = 16  # in one graph, so that its first and last call take a small fraction of the time
NEIGHBOUR_VALUES = 1 << 16  # of the small addition after each call
FLUSH_BYTES = 256 << 20  # read between replays; more than twice any GPU's cache

Call = Callable[[], object]


class Replays(NamedTuple):
    """How often a graph is replayed: warm-ups that do not count, then up to `most`, or `least` beyond `budget_ms`."""

    warmups: int
    most: int
    least: int
    budget_ms: float


THOROUGH = Replays(warmups=3, most=21, least=7, budget_ms=500.0)
BRIEF = Replays(warmups=1, most=9, least=5, budget_ms=30.0)  # for grids of many shapes


def repeated(calls: Sequence[Call]) -> list[Call]:
    """Whole rounds of the calls in turn, at least MIN_CALLS calls."""
    return list(calls) * -(-MIN_CALLS // len(calls))


def samples_us(replay_ms: Callable[[], float], calls: int, replays: Replays) -> list[float]:
    """Microseconds per call of each replay that counts.

    replay_ms: replays all `calls` calls once and returns the milliseconds.
    """
    for _ in range(replays.warmups):
        replay_ms()
    samples: list[float] = []
    while len(samples) < replays.least or (len(samples) < replays.most and sum(samples) < replays.budget_ms):
        samples.append(replay_ms())
    return [milliseconds * 1e3 / calls for milliseconds in samples]


def fastest(samples: dict[str, list[float]]) -> str:
    """The setting with the smallest median."""
    return min(samples, key=lambda setting: median(samples[setting]))


def graph_us(calls: Sequence[Call], clear: Call) -> list[float]:
    """Microseconds per call, one sample per replay, of the calls captured in one CUDA graph on the current device.

    The GPU's cache is flushed before each replay. The flush also hides the time in which the host launches the graph.
    clear: overwrites the output of the calls before the replays, so that only the replays' output remains.
    """
    calls = repeated(calls)
    _warm_up(calls)
    replay_ms = _captured(calls)
    clear()
    return samples_us(replay_ms, len(calls), THOROUGH)


def back_to_back_and_between_us(calls: Sequence[Call], clear: Call) -> tuple[float, float]:
    """Median microseconds per call: of calls back to back, and of calls with a small addition after each.

    Only the first call is made before the captures. Distinct inputs are read from memory however small they are, since
    the cache is flushed before each replay. clear: as in graph_us.
    """
    _warm_up(calls[:1])
    clear()
    alone = median(samples_us(_captured(calls), len(calls), BRIEF))
    paired = [part for call in calls for part in (call, _addition())]
    pairs = median(samples_us(_captured(paired), len(calls), BRIEF))
    return alone, between_us(pairs, _additions_us(len(calls)))


def between_us(pair_us: float, addition_us: float) -> float:
    """What a call adds to the time of its neighbour."""
    return pair_us - addition_us


@cache
def _additions_us(count: int) -> float:
    """Median microseconds of an addition, in a graph of `count` of them."""
    calls = [_addition()] * count
    _warm_up(calls[:1])
    return median(samples_us(_captured(calls), count, BRIEF))


@cache
def _addition() -> Call:
    import torch

    values = torch.zeros(NEIGHBOUR_VALUES, device="cuda")
    return partial(values.add_, 1.0)


@cache
def _flush_buffers() -> tuple:
    import torch

    values = torch.zeros(FLUSH_BYTES // 4, device="cuda")
    return values, values.new_empty(())


def _flush() -> None:
    import torch

    values, total = _flush_buffers()
    torch.sum(values, 0, out=total)


def _warm_up(calls: Sequence[Call]) -> None:
    """Call outside of a capture: the set-up of a first call must not be captured."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()


def _captured(calls: Sequence[Call]) -> Callable[[], float]:
    """Capture the calls in a graph; return a function that flushes the cache, replays it, returns milliseconds."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay_ms() -> float:
        _flush()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return replay_ms
