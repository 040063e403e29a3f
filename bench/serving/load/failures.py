"""Failed requests, counted by reason."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bench.servers.client import without_key
from bench.serving.load.request_times import RequestTimes
from flashinfer_patches.strict import Count, Strict
from vllm_launch import redaction

REASON_CHARACTERS = 80
MAX_REASONS = 8  # of a point; the requests of rarer ones are counted as OTHER_REASONS
NOT_SENT = "not sent"
OTHER_REASONS = "other reasons"
HTTP_STATUS = re.compile(r"HTTP \d{3}")
REASONS = {
    "connection refused": re.compile(r"Cannot connect|Connect call failed|Connection refused"),
    "connection dropped": re.compile(
        r"payload is not completed|Server disconnected|Connection reset|Connection closed|Broken pipe"
    ),
    "no valid response": re.compile(r"object has no attribute|object is not|indices must be|unexpected mimetype"),
}


class Failure(Strict):
    """How many requests failed for a reason."""

    reason: str
    requests: Count


def reason(error: str) -> str:
    """The reason that an error message counts under: the HTTP status, a known phrase, or the start of the message."""
    if status := HTTP_STATUS.match(error):
        return status[0]
    known = (name for name, pattern in REASONS.items() if pattern.search(error))
    return next(known, " ".join(error.split())[:REASON_CHARACTERS])


def counted(requests: Iterable[RequestTimes], unsent: int = 0, unsent_reason: str = "") -> list[Failure]:
    """The failed requests by reason, the most frequent first. unsent: requests of the point that were never sent."""
    counts = Counter(reason(request.error) for request in requests if request.error)
    if unsent:
        counts[f"{NOT_SENT}: {unsent_reason}" if unsent_reason else NOT_SENT] += unsent
    return _limited(counts)


def total(points: Iterable[Sequence[Failure]]) -> list[Failure]:
    """The failures of several points as one list."""
    counts = Counter()
    for failures in points:
        for failure in failures:
            counts[failure.reason] += failure.requests
    return _limited(counts)


def _limited(counts: Counter) -> list[Failure]:
    frequent = dict(counts.most_common(MAX_REASONS))
    if uncounted := counts.total() - sum(frequent.values()):
        frequent[OTHER_REASONS] = frequent.get(OTHER_REASONS, 0) + uncounted
    return [Failure(reason=name, requests=count) for name, count in frequent.items()]


def sentence(failures: Sequence[Failure], requests: int) -> str:
    """Such as "3 of 12 requests failed: HTTP 429 (2), connection dropped (1)"."""
    failed = sum(failure.requests for failure in failures)
    reasons = ", ".join(f"{failure.reason} ({failure.requests})" for failure in failures)
    return f"{failed} of {requests} requests failed: {reasons}"


def redacted(requests: Sequence[RequestTimes], headers: Mapping[str, str]) -> list[RequestTimes]:
    """The requests with secrets masked in errors, and the full error only for the first of each reason.

    headers: of the requests; a server's error page may repeat them.
    """
    seen, result = set(), []
    for request in requests:
        if request.error:
            error = without_secrets(request.error, headers)
            name = reason(error)
            request = request.model_copy(update={"error": name if name in seen else error})
            seen.add(name)
        result.append(request)
    return result


def without_secrets(text: str, headers: Mapping[str, str]) -> str:
    """The text with this process's secrets and folders, and the values of `headers`, masked."""
    return redaction.redact(without_key(text, headers))
