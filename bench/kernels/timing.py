"""Microseconds per call of a kernel, from replays of one CUDA graph."""

from collections.abc import Callable, Sequence
from statistics import median

WARMUPS, REPLAYS = 3, 21
MIN_REPLAYS, BUDGET_MS = 7, 500.0  # no more than MIN_REPLAYS once they have taken BUDGET_MS
MIN_CALLS = 16  # in one graph, so that launching the graph takes a small fraction of the time

Call = Callable[[], object]


def repeated(calls: Sequence[Call]) -> list[Call]:
    """Whole rounds of the calls in turn, at least MIN_CALLS calls."""
    return list(calls) * -(-MIN_CALLS // len(calls))


def samples_us(replay_ms: Callable[[], float], calls: int) -> list[float]:
    """Microseconds per call of REPLAYS replays, fewer beyond BUDGET_MS, after WARMUPS that do not count.

    replay_ms: replays all `calls` calls once and returns the milliseconds.
    """
    for _ in range(WARMUPS):
        replay_ms()
    replays: list[float] = []
    while len(replays) < MIN_REPLAYS or (len(replays) < REPLAYS and sum(replays) < BUDGET_MS):
        replays.append(replay_ms())
    return [milliseconds * 1e3 / calls for milliseconds in replays]


def fastest(samples: dict[str, list[float]]) -> str:
    """The setting with the smallest median."""
    return min(samples, key=lambda setting: median(samples[setting]))


def graph_us(calls: Sequence[Call], clear: Call) -> list[float]:
    """Microseconds per call, one sample per replay, of the calls captured in one CUDA graph on the current device.

    clear: overwrites the output of the calls before the replays, so that only the replays' output remains.
    """
    import torch

    calls = repeated(calls)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the set-up of a first call must not be captured
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    clear()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay_ms() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return samples_us(replay_ms, len(calls))
