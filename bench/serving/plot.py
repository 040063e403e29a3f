"""Plots as PNG files, and the one-line messages that are their titles; same data, same bytes.

Profiles come in their order, which gives them colour and marker; one with nothing to show keeps its place.
`base` is the profile that the others are held against; where it has nothing to show, nothing is compared.
"""

import io
import os
import textwrap
from pathlib import Path
from statistics import median

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from bench.record import noise
from bench.servers.result import Start
from bench.serving.result import Rate

WIDTH_INCHES, DPI = 9.0, 200  # shown at 900 px, drawn at twice that
TITLE_CHARACTERS, LEGEND_CHARACTERS = 84, 90  # that fit into a line
# Okabe and Ito's palette without its yellow: told apart by every kind of colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
CACHES = (("cold", -0.19, "#0072B2"), ("warm", 0.19, "#E69F00"))  # name, place beside the tick, colour
NUMBER = StrMethodFormatter("{x:,.10g}")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E0E0E0",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}


def decode_message(rates: dict[str, list[Rate]], base: str) -> str:
    """What the decode rates say of each profile against `base`: ratios, their noise and what that makes of them."""
    found = {name: noise.ratios(of_one, rates[base]) for name, of_one in rates.items() if name != base}
    parts = [f"{name} {noise.compared(list(of_one.values()), base)}" for name, of_one in found.items() if of_one]
    if parts:
        return "Decode rate: " + "; ".join(parts)
    spans = [
        f"{profile} {noise.span([median(rate.decode_tok_s) for rate in of_one], number)}"
        for profile, of_one in rates.items()
        if of_one
    ]
    return "Decode rate (tokens/s): " + ", ".join(spans)


def capacity_message(capacities: dict[str, int | None], base: str) -> str:
    """How many tokens fit, as a ratio to `base`."""
    known = {profile: tokens for profile, tokens in capacities.items() if tokens}
    if base in known and len(known) > 1:
        others = [name for name in known if name != base]
        first, *more = [f"{known[name] / known[base]:.2f}x" for name in others]
        rest = "".join(f", {name} {ratio}" for name, ratio in zip(others[1:], more, strict=True))
        return f"KV cache: {others[0]} holds {first} the tokens of {base}{rest}"
    return "KV cache: " + ", ".join(f"{profile} {tokens:,} tokens" for profile, tokens in known.items())


def start_message(starts: dict[str, list[Start]]) -> str:
    """How long the server takes to get ready, cold and warm, over all profiles."""
    everything = [start for of_one in starts.values() for start in of_one]
    parts = [
        f"{cache} {noise.span([start.start_s for start in everything if start.cache == cache], number)} s"
        for cache in ("cold", "warm")
        if any(start.cache == cache for start in everything)
    ]
    return "Server start: " + ", ".join(parts)


def number(value: float) -> str:
    """Three digits or all before the point: 1,234, 123, 12.3, 1.23."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def decode_rate_plot(rates: dict[str, list[Rate]], base: str, accuracy: dict[str, str], path: Path) -> None:
    """Median decode rate (tokens/s) over context (tokens), a line per profile; bars show all samples' range.

    One panel for each pair of concurrency and output length; lines stand a little aside, so that none hides
    another. accuracy: each profile's record, to stand beside its name. At least one profile has rates.
    """
    everything = [rate for of_one in rates.values() for rate in of_one]
    panels = sorted({(rate.concurrency, rate.output) for rate in everything})
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    longest = max(rate.context for rate in everything)
    with style.context(["default", STYLE]):
        figure, cells = new_figure(decode_message(rates, base), 1.2 + 2.7 * rows, rows, columns)
        for cell, (concurrency, output) in zip(cells, panels, strict=False):
            for place, (profile, of_one) in enumerate(rates.items()):
                shown = [rate for rate in of_one if (rate.concurrency, rate.output) == (concurrency, output)]
                aside = (place - (len(rates) - 1) / 2) * 4
                _decode_line(cell, f"{profile} ({accuracy[profile]})", place, aside, shown)
            highest = max(max(one.decode_tok_s) for one in everything if one.concurrency == concurrency)
            cell.set_title(f"{requests(concurrency)}, {output} tokens out", loc="left")
            cell.set_ylim(0, 1.08 * highest)
            cell.set_xlim(-0.04 * longest, 1.05 * longest)
            cell.set_xlabel("context (tokens)")
            cell.xaxis.set_major_formatter(NUMBER)
            cell.yaxis.set_major_formatter(NUMBER)
            cell.locator_params(axis="x", nbins=5)
        for cell in cells[::columns]:
            cell.set_ylabel("decode rate (tokens/s)")
        for cell in cells[len(panels) :]:
            cell.set_visible(False)
        legend(figure, cells[0])
        save(figure, path)


def capacity_plot(capacities: dict[str, int | None], base: str, path: Path) -> None:
    """KV cache capacity (tokens) of each profile, with its ratio to `base`; at least one is known."""
    with style.context(["default", STYLE]):
        figure, (cell,) = new_figure(capacity_message(capacities, base), 1.5 + 0.55 * len(capacities), 1, 1)
        values = [tokens or 0 for tokens in capacities.values()]
        bars = cell.barh(list(capacities), values, height=0.6, color=[colour_of(i) for i in range(len(values))])
        cell.bar_label(bars, [_tokens(capacities, profile, base) for profile in capacities], padding=5)
        _bar_axes(cell, len(values), "KV cache capacity (tokens)", 1.28 * max(values))
        save(figure, path)


def start_plot(starts: dict[str, list[Start]], path: Path) -> None:
    """Seconds to a ready server, and from there to the first token: cold and warm of each profile.

    Where a profile started several times, the median. At least one profile has started.
    """
    present = {start.cache for of_one in starts.values() for start in of_one}
    drawn = [(cache, offset if len(present) > 1 else 0, colour) for cache, offset, colour in CACHES if cache in present]
    with style.context(["default", STYLE]):
        figure, cells = new_figure(start_message(starts), 1.7 + 0.75 * len(starts), 1, 2)
        measures = {"start_s": "launch to ready server (s)", "first_token_s": "request to first token (s)"}
        for cell, (field, label) in zip(cells, measures.items(), strict=True):
            for cache, offset, colour in drawn:
                seconds = {
                    place + offset: median(getattr(start, field) for start in of_one if start.cache == cache)
                    for place, of_one in enumerate(starts.values())
                    if any(start.cache == cache for start in of_one)
                }
                bars = cell.barh(list(seconds), seconds.values(), height=0.36, color=colour, label=cache)
                cell.bar_label(bars, [number(value) for value in seconds.values()], padding=5)
            highest = max(getattr(start, field) for of_one in starts.values() for start in of_one)
            _bar_axes(cell, len(starts), label, 1.2 * highest)
            cell.set_yticks(range(len(starts)), list(starts))
        cells[1].tick_params(labelleft=False)
        legend(figure, cells[0])
        save(figure, path)


def new_figure(title: str, height_inches: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of the common width with its title, and its cells, row by row."""
    wrapped = textwrap.fill(title, TITLE_CHARACTERS)
    height_inches += 0.2 * wrapped.count("\n")
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(wrapped, x=0.012, ha="left", fontsize=12, fontweight="bold")
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]


def _decode_line(cell: Axes, label: str, place: int, aside: float, rates: list[Rate]) -> None:
    """aside: points (1/72 inch) to the right of the true context."""
    rates = sorted(rates, key=noise.point)
    middles = [median(rate.decode_tok_s) for rate in rates]
    below = [middle - min(rate.decode_tok_s) for middle, rate in zip(middles, rates, strict=True)]
    above = [max(rate.decode_tok_s) - middle for middle, rate in zip(middles, rates, strict=True)]
    cell.errorbar(
        [rate.context for rate in rates],
        middles,
        yerr=[below, above],
        color=colour_of(place),
        marker=MARKERS[place % len(MARKERS)],
        capsize=3,
        elinewidth=1.2,
        label=label,
        transform=cell.transData + ScaledTranslation(aside / 72, 0, cell.figure.dpi_scale_trans),
    )


def _bar_axes(cell: Axes, profiles: int, label: str, right: float) -> None:
    """A horizontal bar chart's axes: first profile on top, room at the right for the values."""
    cell.set_ylim(profiles - 0.5, -0.5)
    cell.set_xlim(0, right)
    cell.set_xlabel(label)
    cell.xaxis.set_major_formatter(NUMBER)
    cell.locator_params(axis="x", nbins=5)
    cell.grid(visible=False)
    cell.tick_params(axis="y", length=0)


def colour_of(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def requests(concurrency: int) -> str:
    return "1 request" if concurrency == 1 else f"{concurrency} requests at once"


def _tokens(capacities: dict[str, int | None], profile: str, base: str) -> str:
    tokens, of_base = capacities[profile], capacities[base]
    if not tokens:
        return "not known"
    return f"{tokens:,}" if profile == base or not of_base else f"{tokens:,}  ({tokens / of_base:.2f}x)"


def legend(figure: Figure, *cells: Axes) -> None:
    """A legend below the figure of what any of the cells shows, each label once."""
    found = {label: handle for cell in cells for handle, label in zip(*cell.get_legend_handles_labels(), strict=True)}
    labels, handles = list(found), list(found.values())
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // max(map(len, labels))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> None:
    """Write the figure whole or not at all, without a date or a version of the software in it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.getvalue())
    temporary.replace(path)
