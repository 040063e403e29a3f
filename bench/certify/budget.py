"""The time that a certificate may take."""

import time
from collections.abc import Callable

Watch = Callable[[], None]  # raises OutOfTime once the time is over


class OutOfTime(Exception):
    """A check was not finished in time."""


def watch(seconds: float) -> Watch:
    """Return a function that raises OutOfTime from `seconds` after this call on."""
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise OutOfTime(f"not finished in {seconds:g} s; give it more: --seconds {2 * seconds:g}")

    return check
