"""The server's own counters under load, polled from its /metrics: requests waiting and running, preemptions, KV cache.

The names are vLLM's. A server without /metrics, or without one of them, has no such counter: None, never 0.
"""

import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
    """A server's counters while the measured requests of a point ran; None: not known.

    waiting, running: the most requests at once. preemptions: of running requests, for lack of KV cache. kv_cache_usage:
    the largest part of the KV cache in use, 0 to 1. What is shorter than INTERVAL_S may be missed.
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


def summary(samples: Sequence[Sample], start: float, end: float) -> Counters | None:
    """The counters between two times; None without any sample.

    Preemptions are counted from the last sample before the start to the first one after the end.
    """
    during = [values for at, values in samples if start <= at <= end]
    before = [values for at, values in samples if at < start][-1:]
    after = [values for at, values in samples if at > end][:1]
    preemptions = [values["preemptions"] for values in (*before, *during, *after) if "preemptions" in values]

    def highest(field: str) -> float | None:
        return max((values[field] for values in during if field in values), default=None)

    if not samples:
        return None
    waiting, running, usage = map(highest, ("waiting", "running", "kv_cache_usage"))
    return Counters(
        waiting=None if waiting is None else round(waiting),
        running=None if running is None else round(running),
        preemptions=round(max(preemptions) - preemptions[0]) if len(preemptions) > 1 else None,
        kv_cache_usage=None if usage is None else min(1.0, usage),
    )


@contextmanager
def polled(endpoint: Endpoint) -> Iterator[list[Sample]]:
    """Poll the server's counters during the block; yields the list that the samples are added to.

    The last sample is taken after the block. A server without /metrics is asked once.
    """
    samples: list[Sample] = []
    ended = threading.Event()
    thread = threading.Thread(target=_poll, args=(endpoint, samples, ended), daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join(2 * TIMEOUT_S)


def _poll(endpoint: Endpoint, samples: list[Sample], ended: threading.Event) -> None:
    with requests.Session() as session:
        session.trust_env = False
        is_last = False
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
            if is_last:
                return
            is_last = ended.wait(INTERVAL_S)
