"""An engine result's part of a report: the step of each variant over stock BF16's, within its piece."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench.engine import prediction, ratios
from bench.engine.cells import order, parse
from bench.engine.ratios import SLOPE, judged_figure
from bench.engine.result import EngineResult, EngineRow
from bench.engine.variants import BASE, NAMES
from bench.record.noise import INSIDE, NOT_KNOWN, TOO_NOISY, Ratio
from bench.report import markdown as md
from bench.report import provenance
from bench.report.document import Section
from bench.report.numbers import number, span

CELL = "sequences x context"
LIMITED = "plugin-fp8", "stock-fp8"  # by bytes alike: the limit of FP8 is that of the first measured
NOTE = (
    "Ratios: steps over stock BF16's of the same piece, below 1 is faster; where the cache is full, tokens/s over its"
    " tokens/s, above 1 is faster. ±: from the starts of both engines, none where each started once. By bytes: the"
    " roofline's ratio for FP8, a limit. Sequences start within 64 tokens of the context, or from half to all of it."
)
STEP_NOTE = (
    "Step: median of a start's steps, none synchronised; mean: over all of them. Distinct: different last tokens of the"
    " sequences."
)
KERNELS = 24  # in the table of a profile


def section(result: EngineResult) -> Section:
    source, rows = result.provenance, [row for row in result.rows if row.error is None]
    names = [name for name in NAMES if any(row.variant == name for row in rows)]
    compilation = "" if result.compilation == "default" else ", no compilation"
    ranks = "" if result.tensor_parallel == 1 else f", tensor parallel {result.tensor_parallel}"
    left_out = dict.fromkeys(f"{entry.variant} at {entry.cell}, start {entry.start}" for entry in result.left_out)
    measured = bool(rows)
    return Section(
        id=result.id,
        source=source,
        subject=f"Engine steps of {result.shape} on {source.machine.name}, vLLM {result.vllm}{ranks}{compilation}",
        page=[
            *(
                [ratio_table(result, rows, names), around_table(result, rows, names), _conditions(result, rows)]
                if measured
                else []
            ),
            *md.listing("Failed:", failures(result.rows)),
        ],
        not_measured=[f"no time yet: {', '.join(left_out)}"] if left_out else [],
        details=[*step_tables(result, rows), *_profiles(result), *_pieces(result)],
        glance=_glance(result, rows, names),
        draw=partial(_draw, result, rows) if measured else None,
    )


def failures(rows: list[EngineRow]) -> list[str]:
    """A line of Markdown for each variant, start and reason, with its cells."""
    cells: dict[tuple[str, int, str], list[str]] = {}
    for row in rows:
        if row.error:
            cells.setdefault((row.variant, row.start, row.error), []).append(row.cell)
    return [
        md.text(f"{variant}, start {start}, at {', '.join(names)}: {error}")
        for (variant, start, error), names in cells.items()
    ]


def ratio_table(result: EngineResult, rows: list[EngineRow], names: list[str]) -> str:
    """Cells by variants; stock BF16's steps in milliseconds."""
    compared = {name: ratios.compared(ratios.of_piece(rows, name), name) for name in names if name != BASE.name}
    shape, limited = prediction.model(result), next((name for name in LIMITED if name in names), None)
    lines = []
    for cell in order({row.cell for row in rows}):
        base = [row for row in rows if (row.variant, row.cell) == (BASE.name, cell)]
        limit = limited and prediction.ratio(shape, ratios.of_piece(rows, limited), limited, BASE.name, cell)
        cells = [ratio_cell(cell, of_name[cell]) if cell in of_name else "-" for of_name in compared.values()]
        lines.append([parse(cell).words, _base_cell(cell, base), *cells, f"{limit:.2f}" if limit else "-"])
    slopes = [ratios.slope(ratios.of_piece(rows, name), name) for name in compared]
    if any(slopes):
        first, last = (parse(cell).context for cell in SLOPE)
        cells = [f"{value:.2f}" if value else "-" for value in slopes]
        lines.append([f"growth, 1 x {first:,} to {last:,}", "-", *cells, "-"])
    return md.table([CELL, f"{BASE.name}, ms", *compared, "FP8 by bytes"], lines)


def _base_cell(cell: str, rows: list[EngineRow]) -> str:
    if not rows:
        return "-"
    steps = span([row.step_ms for row in rows], number)
    return steps if judged_figure(cell) == "step_ms" else f"{span([row.tokens_per_s for row in rows], number)} tokens/s"


def ratio_cell(cell: str, ratio: Ratio) -> str:
    """Markdown: the ratio with its noise; bold where the difference is beyond it."""
    outcome = ratios.verdict(cell, ratio)
    noise = "" if math.isinf(ratio.noise) else f" ± {ratio.noise:.3f}"
    text = f"{ratio.value:.3f}{noise}"
    if outcome == TOO_NOISY:
        return f"{outcome} ({text})"
    if outcome == INSIDE:
        return f"{text} (noise)"
    return text if outcome == NOT_KNOWN else f"**{text}, {outcome}**"


def around_table(result: EngineResult, rows: list[EngineRow], names: list[str]) -> str:
    """What is not a step: capacity, start, and prefill of single requests; ratios within the piece."""
    singles = order({row.cell for row in rows if row.ttft_s})
    lines = [
        ["KV capacity, tokens", *(_median(rows, name, "capacity_tokens", "{:,.0f}".format) for name in names)],
        [
            "first start, s",
            *(_median([row for row in rows if row.start == 1], name, "start_s", number) for name in names),
        ],
        [
            "later starts, s",
            *(_median([row for row in rows if row.start > 1], name, "start_s", number) for name in names),
        ],
    ]
    for cell in singles:
        first = [row for row in rows if row.cell == cell]
        rates = [_median(first, name, "prefill_tok_s", "{:,.0f}".format) for name in names]
        waits = [_ttft_cell(rows, name, cell) for name in names]
        cells = [f"{rate} ({wait})" for rate, wait in zip(rates, waits, strict=True)]
        lines.append([f"prefill of {parse(cell).context:,}, tokens/s (first token, ratio)", *cells])
    return md.table(["", *names], [line for line in lines if set(line[1:]) != {"-"}])


def _median(rows: list[EngineRow], name: str, field: str, write: Callable[[float], str]) -> str:
    values = [getattr(row, field) for row in ratios.of_piece(rows, name) if row.variant == name and getattr(row, field)]
    return write(median(values)) if values else "-"


def _ttft_cell(rows: list[EngineRow], name: str, cell: str) -> str:
    if name == BASE.name:
        return "1"
    ratio = ratios.to_base(ratios.of_piece(rows, name), name, "ttft_s").get(cell)
    return ratio_cell(cell, ratio) if ratio else "-"


def step_tables(result: EngineResult, rows: list[EngineRow]) -> list[str]:
    """Every row's figures, a table a piece."""
    blocks, shape = [], prediction.model(result)
    headers = [
        "variant",
        "start",
        CELL,
        "batch",
        "step, ms",
        "mean, ms",
        "by bytes, ms",
        "tokens/s",
        "distinct",
        "start, s",
    ]
    for number_of, piece in enumerate(result.pieces, 1):
        lines = []
        for row in [row for row in rows if row.piece == number_of]:
            ceiling = piece.read_ceiling_bytes_per_s
            limit = prediction.step_ms(shape, row, ceiling)
            times = [
                f"{row.step_ms:.3f}",
                f"{row.mean_ms:.3f}",
                number(limit) if limit else "-",
                number(row.tokens_per_s),
                str(row.distinct_tokens),
            ]
            cell = parse(row.cell).words
            lines.append([row.variant, str(row.start), cell, str(row.batch), *times, number(row.start_s)])
        if lines:
            blocks += [f"## Steps of piece {md.text(piece.id)}", md.table(headers, lines)]
    return [*blocks, STEP_NOTE] if blocks else []


def _profiles(result: EngineResult) -> list[str]:
    blocks = []
    for profile in result.profiles:
        for name, times in profile.kernels.items():
            total = sum(entry.us for entry in times)
            lines = [[md.text(entry.name), f"{entry.calls:g}", number(entry.us)] for entry in times[:KERNELS]]
            lines.append([f"all {len(times)}", f"{sum(entry.calls for entry in times):g}", number(total)])
            title = f"## Kernels of a step, {name}, {parse(profile.cell).words}"
            blocks += [title, md.table(["kernel", "calls", "us"], lines)]
    return blocks


def _pieces(result: EngineResult) -> list[str]:
    """Where each piece was measured."""
    if len(result.pieces) == 1:
        return []
    lines = [
        [md.text(piece.id), f"{piece.provenance.created:%Y-%m-%d %H:%M}", md.text(provenance.commit(piece.provenance))]
        for piece in result.pieces
    ]
    return ["## Pieces", md.table(["piece", "made", "commit"], lines)]


def _conditions(result: EngineResult, rows: list[EngineRow]) -> str:
    def values(field: str) -> str:
        return ", ".join(dict.fromkeys(str(getattr(row, field)) for row in rows))

    ceilings = [piece.read_ceiling_bytes_per_s for piece in result.pieces if piece.read_ceiling_bytes_per_s]
    ceiling = f" Read ceiling {span([value / 1e12 for value in ceilings], '{:.2f}'.format)} TB/s." if ceilings else ""
    routing = "spread over all experts" if result.routing == "spread" else "as the dummies do, the same experts for all"
    cache = {"assumed": "filled with normal values", "prefilled": "prefilled"}
    caches = ", ".join(dict.fromkeys(cache[row.cache] for row in rows))
    torch = result.provenance.versions.get("torch", "?")
    return (
        f"{md.text(result.shape)}'s shape with dummy weights, so no answers are judged here; routing {routing}; cache"
        f" {caches}. vLLM {md.text(result.vllm)} on torch {md.text(torch)}, compilation {result.compilation}, model"
        f" runner {md.text(values('runner'))}, CUDA graphs {md.text(values('cuda_graphs'))}.{ceiling} {NOTE}"
    )


def _glance(result: EngineResult, rows: list[EngineRow], names: list[str]) -> list[list[str]]:
    """A row for the plugin with an FP8 cache."""
    name = LIMITED[0]
    steps = ratios.to_base(ratios.of_piece(rows, name), name) if name in names else {}
    judged = [ratio.value for cell, ratio in steps.items() if judged_figure(cell) == "step_ms"]
    if not judged:
        return []
    piece = [row for row in ratios.of_piece(rows, name) if row.capacity_tokens]
    tokens = [[row.capacity_tokens for row in piece if row.variant == variant] for variant in (name, BASE.name)]
    capacity = f"{median(tokens[0]) / median(tokens[1]):.2f}x" if all(tokens) else "-"
    speed = f"step {span(judged, '{:.2f}'.format)} of {BASE.name}'s"
    return [[md.text(result.provenance.machine.name), f"{name}, engine", "dummy weights", capacity, speed]]


def _draw(result: EngineResult, rows: list[EngineRow], path: Path) -> None:
    from bench.engine.plot import engine_plot  # matplotlib is slow to load

    engine_plot(result, rows, path)
