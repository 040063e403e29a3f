"""Figures as text, for Markdown, plots and the terminal."""

import math
from collections.abc import Callable, Sequence

from bench.record.noise import INSIDE, NOT_KNOWN, TOO_NOISY, Ratio, verdict


def number(value: float) -> str:
    """Three digits, or all before the point: 1,234, 123, 12.3, 1.23."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def times(value: float) -> str:
    """A ratio: 1.12x, and 1.004x where two digits would hide the difference."""
    return f"{value:.3f}x" if abs(value - 1) < 0.0095 else f"{value:.2f}x"


def with_noise(ratio: Ratio) -> str:
    """1.02x ± 0.03; without the noise where that is not known."""
    if math.isinf(ratio.noise):
        return times(ratio.value)
    digits = 2 if ratio.noise >= 0.00995 else 3
    return f"{ratio.value:.{digits}f}x ± {ratio.noise:.{digits}f}"


def ratio_cell(ratio: Ratio) -> str:
    """Markdown: the ratio and its noise; bold where the difference is beyond the noise, `(noise)` where it is not."""
    outcome = verdict(ratio)
    if outcome in (INSIDE, TOO_NOISY):
        return f"{with_noise(ratio)} (noise)"
    text = f"{with_noise(ratio)}, {outcome}"
    return text if outcome == NOT_KNOWN else f"**{text}**"


def span(values: Sequence, write: Callable[..., str]) -> str:
    """The lowest to the highest value; a single text where both read the same."""
    lowest, highest = write(min(values)), write(max(values))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def requests(concurrency: int) -> str:
    return "1 request" if concurrency == 1 else f"{concurrency} requests at once"


def aligned(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Plain-text columns, set to the right but for column number `left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"{{:{'<' if index == left else '>'}{width}}}" for index, width in enumerate(widths)]
    return "\n".join("  ".join(formats).format(*row).rstrip() for row in rows)
