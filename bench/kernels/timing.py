"""Microseconds a call of a kernel, from replays of one CUDA graph."""

from collections.abc import Callable, Sequence
from statistics import median

WARMUPS, REPLAYS = 3, 21
LEAST_REPLAYS, BUDGET_MS = 7, 500.0  # as few as that where replays take long
LEAST_CALLS = 16  # in one graph: the launch of the graph itself is a small part then

Call = Callable[[], object]


def repeated(calls: Sequence[Call]) -> list[Call]:
    """The calls in turn, whole rounds of them, at least LEAST_CALLS."""
    return list(calls) * -(-LEAST_CALLS // len(calls))


def samples_us(replay_ms: Callable[[], float], calls: int) -> list[float]:
    """Microseconds a call, of REPLAYS replays after WARMUPS that do not count; of fewer beyond BUDGET_MS.

    replay_ms: replays all `calls` calls once and returns how long that took, milliseconds.
    """
    for _ in range(WARMUPS):
        replay_ms()
    taken: list[float] = []
    while len(taken) < LEAST_REPLAYS or (len(taken) < REPLAYS and sum(taken) < BUDGET_MS):
        taken.append(replay_ms())
    return [milliseconds * 1e3 / calls for milliseconds in taken]


def fastest(samples: dict[str, list[float]]) -> str:
    """The setting with the smallest median."""
    return min(samples, key=lambda setting: median(samples[setting]))


def graph_us(calls: Sequence[Call], clear: Call) -> list[float]:
    """Samples (microseconds a call) of the calls in turn, captured in one CUDA graph on the current device.

    clear: undoes what calls before the replays wrote, so that what is there afterwards is the replays' own.
    """
    import torch

    calls = repeated(calls)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what a first call sets up must not be captured
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    clear()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay_ms() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    return samples_us(replay_ms, len(calls))
