"""Times of the parts of a frame, and which frames are cold."""

import time
from collections import defaultdict
from contextlib import contextmanager
from statistics import mean, median

import torch


class Clock:
    """Times parts of frames outside compiled code: by the clock on a CPU, by events on a GPU.

    `with clock("mlp"): ...` adds to the current frame; `end_frame` returns its parts.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.spans = defaultdict(list)

    @contextmanager
    def __call__(self, part: str):
        start = self._mark()
        yield
        self.spans[part].append((start, self._mark()))

    def end_frame(self) -> dict[str, float]:
        """Return the ms of each part since the last call. Waits for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()
        parts = {part: sum(self._between(*span) for span in spans) for part, spans in self.spans.items()}
        self.spans.clear()
        return parts

    def _mark(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start, stop) -> float:
        return start.elapsed_time(stop) if self.on_gpu else 1e3 * (stop - start)


def compiled_graphs() -> int:
    """Return how many graphs torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def cold_frames(totals: list[float], graphs: list[int]) -> list[int]:
    """Return the frames to leave out of statistics. totals: ms of each frame; graphs: compiled in each.

    Cold are frames in which a graph was compiled, and the leading frames that took more than two medians: kernels are
    loaded and tuned in them. A slow frame later on is not cold.
    """
    limit = 2 * median(totals)
    leading = next((number for number, total in enumerate(totals) if total <= limit), len(totals))
    return [number for number in range(len(totals)) if number < leading or graphs[number]]


def summarise(frames: list[dict], cold: list[int]) -> dict:
    """Return mean and median of each time, and the frames a second, over the frames that are not cold."""
    warm = [frame for number, frame in enumerate(frames) if number not in set(cold)]
    if not warm:
        return {"frames": 0}
    names = list(dict.fromkeys(name for frame in warm for name in frame))
    values = {name: [frame.get(name, 0.0) for frame in warm] for name in names}
    return {
        "frames": len(warm),
        "fps_total": 1e3 / mean(values["total_ms"]),
        "fps_pipeline": 1e3 / mean(values["pipeline_ms"]),
        "mean_ms": {name: mean(times) for name, times in values.items()},
        "median_ms": {name: median(times) for name, times in values.items()},
        "sum_ms": {name: sum(times) for name, times in values.items()},
    }
