"""Goodput: requests that meet every limit of `--slo`, as a share of all and per second.

As in `vllm bench serve --goodput`, with `itl` for its `tpot` and `e2e` for its `e2el`: a limit is met by a value equal
to it, and a response of a single token meets every `itl`. vLLM divides by the time of its whole run and gives no share;
here each repeat of a point is a run.
"""

import math
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from bench.serving.load import request_times
from bench.serving.load.request_times import Repeats, RequestTimes
from flashinfer_patches.strict import Positive

Slo = dict[Literal["ttft", "itl", "e2e"], Positive]  # limits in ms

MEASURES: dict[str, Callable[[RequestTimes], float | None]] = {
    "ttft": lambda request: request.ttft_ms,
    "itl": lambda request: request.tpot_ms,  # the mean over the request: a single gap may hold several tokens
    "e2e": lambda request: request.e2e_ms,
}
UNITS = {"ms": 1, "s": 1000}
LIMIT = re.compile(r"(\w+)=(\d+(?:\.\d+)?)(ms|s)")


class Goodput(NamedTuple):
    """share: of all requests of a point. per_s: requests per second of each repeat. Never sent counts as failed."""

    share: float
    per_s: list[float]


def parse(text: str) -> Slo:
    """The limits of a text such as `ttft=500ms,itl=50ms`; raises ValueError."""
    slo: Slo = {}
    for word in text.split(","):
        match = LIMIT.fullmatch(word.strip())
        if match is None or match[1] not in MEASURES or match[1] in slo:
            message = f"got {word.strip()!r} in {text!r}, expected {', '.join(MEASURES)}, each at most once,"
            raise ValueError(f"{message} with ms or s, such as ttft=500ms,itl=50ms")
        limit = float(match[2]) * UNITS[match[3]]
        if not 0 < limit < math.inf:
            raise ValueError(f"got {word.strip()!r}, expected a limit above zero")
        slo[match[1]] = limit
    return slo


def as_text(slo: Slo) -> str:
    """Such as `ttft=500ms,itl=50ms`: what parse() reads."""
    return ",".join(f"{name}={limit:.15g}ms" for name, limit in slo.items())


def goodput(repeats: Repeats, total: int, slo: Slo) -> Goodput | None:
    """The goodput of a point; None without requests or limits.

    repeats: empty where none of its requests was sent. total: all requests of the point, those never sent included.
    """
    if not total or not slo:
        return None
    met = [sum(meets(request, slo) for request in repeat) for repeat in repeats]
    per_s = [
        count / request_times.wall_s(repeat) if repeat else 0.0 for count, repeat in zip(met, repeats, strict=True)
    ]
    return Goodput(sum(met) / total, per_s)


def meets(request: RequestTimes, slo: Slo) -> bool:
    """Whether a request meets every limit; a failed one meets none."""
    if request.error is not None or request.ttft_ms is None:
        return False
    return all((MEASURES[name](request) or 0) <= limit for name, limit in slo.items())
