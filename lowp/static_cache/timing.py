"""Times of calls: by the clock on a CPU, by events on a GPU, read when they are reported."""

import time
from collections import deque
from collections.abc import Callable

import torch

CALLS = 4096  # the newest ones of each name


def make_times(names: tuple[str, ...]) -> dict[str, deque]:
    return {name: deque(maxlen=CALLS) for name in names}


def timed(times: dict[str, deque] | None, name: str, device: torch.device, function: Callable, *arguments):
    """Call the function; outside compiled code, record its time in times[name], on a GPU without waiting for it."""
    if times is None or torch.compiler.is_compiling():
        return function(*arguments)
    if device.type != "cuda":
        start = time.perf_counter()
        result = function(*arguments)
        times[name].append((time.perf_counter() - start) * 1e3)
        return result
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = function(*arguments)
    stop.record()
    times[name].append((start, stop))
    return result


def milliseconds(calls: deque) -> list[float]:
    """Return the recorded times; waits for a GPU's last one."""
    return [call if isinstance(call, float) else _elapsed(*call) for call in calls]


def _elapsed(start, stop) -> float:
    stop.synchronize()
    return start.elapsed_time(stop)
