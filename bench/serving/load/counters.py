"""The server's own counters under load, polled from its /metrics: requests waiting and running, preemptions, KV cache.

The names are vLLM's. Answering /metrics takes vLLM 0.32 about 13 ms on two busy CPU cores and delays tokens: poll in
the warm-up repeat of a point, which has the same load, not while requests are measured. A missing counter is None,
never 0, and so is one of a warm-up repeat too short for a poll under its whole load.
"""

import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import requests
from pydantic import Field

from bench.servers.client import Endpoint
from flashinfer_patches.strict import Strict

INTERVAL_S = 0.25
TIMEOUT_S = 2.0
NAMES = {
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_requests_running": "running",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:num_preemptions": "preemptions",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:gpu_cache_usage_perc": "kv_cache_usage",  # its name before vLLM 0.10
}
LINE = re.compile(rf"^({'|'.join(NAMES)})(?:\{{.*\}})?[ \t]+(\S+)", re.MULTILINE)

Requests = Annotated[int, Field(ge=0)]


class Counters(Strict):
    """A server's counters at a point; None: not known.

    waiting, running: the most requests at once in the warm-up repeat. kv_cache_usage: the largest part of the KV cache
    in use in it, 0 to 1. Peaks shorter than INTERVAL_S may be missed; all three are None if no poll reported the
    point's number of requests. preemptions: of the measured requests, for lack of KV cache.
    """

    waiting: Requests | None = None
    running: Requests | None = None
    preemptions: Requests | None = None
    kv_cache_usage: Annotated[float, Field(ge=0, le=1)] | None = None


Sample = tuple[float, dict[str, float]]  # time.monotonic(), and the counters by their field in Counters


def parse(text: str) -> dict[str, float]:
    """The counters in Prometheus text, by their field in Counters: summed over engines, cache usage the highest."""
    values: dict[str, list[float]] = defaultdict(list)
    for name, word in LINE.findall(text):
        try:
            value = float(word)
        except ValueError:
            continue
        if math.isfinite(value):
            values[NAMES[name]].append(value)
    return {field: max(each) if field == "kv_cache_usage" else sum(each) for field, each in values.items()}


def summary(samples: Sequence[Sample], warm_up_start: float, start: float, concurrency: int) -> Counters | None:
    """The counters of a point; None without any sample.

    warm_up_start, start: of the warm-up repeat and of the measured requests, by time.monotonic().
    """
    warm_up = [values for time_s, values in samples if warm_up_start <= time_s <= start]
    last = [values for time_s, values in samples if time_s > start][-1:]
    preemptions = [values["preemptions"] for values in (*warm_up[-1:], *last) if "preemptions" in values]
    requests_at_once = [values.get("running", 0) + values.get("waiting", 0) for values in warm_up]
    is_loaded = max(requests_at_once, default=0) >= concurrency

    def highest(field: str) -> float | None:
        return max((values[field] for values in warm_up if field in values), default=None) if is_loaded else None

    if not samples:
        return None
    waiting, running, usage = map(highest, ("waiting", "running", "kv_cache_usage"))
    return Counters(
        waiting=None if waiting is None else round(waiting),
        running=None if running is None else round(running),
        preemptions=round(max(0, preemptions[1] - preemptions[0])) if len(preemptions) == 2 else None,
        kv_cache_usage=None if usage is None else min(1.0, usage),
    )


@contextmanager
def polled(endpoint: Endpoint) -> Iterator[tuple[list[Sample], Callable[[], None]]]:
    """Poll the server's counters until the yielded function is called; yields the list of samples too.

    The last sample is taken after the block. A server without /metrics is polled once.
    """
    samples: list[Sample] = []
    stopped = threading.Event()
    thread = threading.Thread(target=_poll, args=(endpoint, samples, stopped), daemon=True)
    thread.start()
    try:
        yield samples, stopped.set
    finally:
        stopped.set()
        thread.join(2 * TIMEOUT_S)
        if samples:
            _poll(endpoint, samples, stopped)


def _poll(endpoint: Endpoint, samples: list[Sample], stopped: threading.Event) -> None:
    """Add a sample to `samples`, and another one every INTERVAL_S until `stopped`."""
    with requests.Session() as session:
        session.trust_env = False
        while True:
            try:
                response = session.get(
                    f"{endpoint.url}/metrics", headers=endpoint.headers, timeout=TIMEOUT_S, allow_redirects=False
                )
                values = parse(response.text) if response.status_code == 200 else {}
            except requests.RequestException:  # a busy server may miss a poll
                pass
            else:
                if not values:
                    return
                samples.append((time.monotonic(), values))
            if stopped.wait(INTERVAL_S):
                return
