"""The roofline as a plot: predicted decode rates, and the gain of FP8, over the context."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from bench.report.figure import NUMBER, colour_and_marker, frame, legend, save
from bench.report.numbers import requests
from bench.roofline.prediction import GAINS, gain, pays_from, predict
from bench.roofline.shape import ModelShape

PAYS = GAINS[-1]


def roofline_message(shape: ModelShape, batches: list[int]) -> str:
    """From which context FP8 in every layer gains PAYS, for the fewest and the most requests at once."""
    parts = []
    for batch in dict.fromkeys((min(batches), max(batches))):
        context = pays_from(shape, "fp8", PAYS, batch)
        parts.append(f"{f'from {context:,} tokens' if context else 'never'} with {requests(batch)}")
    return f"{shape.name}, by bytes alone: an FP8 KV cache decodes {PAYS - 1:.0%} faster {', '.join(parts)}"


def roofline_plot(shape: ModelShape, bandwidth: float, batches: list[int], path: Path) -> None:
    """Rates of BF16 and FP8 (tokens/s) and FP8's gain (%) over the context, a line per batch, a mark at PAYS.

    bandwidth: bytes/s. Contexts go from 1/512 of the model's longest to that. Raises OSError if it cannot write.
    """
    contexts = sorted({max(1, round(shape.max_context * 2 ** (-step / 10))) for step in range(91)})
    with frame(roofline_message(shape, batches), 4.6, 1, 2) as (figure, (rates, gains)):
        for index, batch in enumerate(batches):
            colour = colour_and_marker(index)["color"]
            for kv_format, line in (("bf16", "--"), ("fp8", "-")):
                points = [predict(shape, kv_format, context, batch, bandwidth) for context in contexts]
                rates.plot(contexts, [point.tokens_s for point in points], line, color=colour)
            gained = [gain(shape, "fp8", context, batch) - 1 for context in contexts]
            gains.plot(contexts, gained, color=colour, label=requests(batch))
            if pays := pays_from(shape, "fp8", PAYS, batch):
                gains.plot(pays, gain(shape, "fp8", pays, batch) - 1, **colour_and_marker(index))
        rates.set_title(f"limit at {bandwidth / 1e9:,.10g} GB/s; FP8 solid, BF16 dashed", loc="left")
        rates.set_ylabel("decode rate of all requests (tokens/s)")
        rates.set_yscale("log")
        rates.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if len(batches) > 1 else range(1, 10)))
        rates.yaxis.set_major_formatter(NUMBER)
        rates.yaxis.set_minor_locator(NullLocator())
        gains.set_title(f"at any bandwidth; marks at {PAYS - 1:.0%}", loc="left")
        gains.set_ylabel("gain of FP8 over BF16")
        gains.set_ylim(bottom=0)
        gains.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for panel in (rates, gains):
            _context_axis(panel)
        legend(figure, gains)
        save(figure, path)


def _context_axis(panel: Axes) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(LogLocator(base=4, subs=(2,)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(
        FuncFormatter(lambda tokens, _: f"{tokens:g}" if tokens < 1024 else f"{tokens / 1024:g}K")
    )
    panel.set_xlabel("context (tokens; 1K = 1,024)")
