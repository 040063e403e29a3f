"""The report's part on the roofline: measured gains beside those that bytes allow and those the original plan expected.

A gain is a decode rate over the base profile's. By bytes it is bytes of a step over bytes of a step, at any bandwidth.
"""

from statistics import median

from bench.record import noise
from bench.report import markdown as md
from bench.roofline.prediction import GAINS, Point, gain, pays_from, predict_measured
from bench.roofline.shape import Shape, names, of_model
from bench.serving import plot as plots
from bench.serving.result import Rate, ServingResult, ServingRow

SMALL_WEIGHTS = 100e6  # bytes; at 273 GB/s fewer are read in less than 0.4 ms, and launches take longer than that
# What the project set out to reach, tokens/s: gpt-oss-120b on a DGX Spark, prompt of 2048 tokens, one request.
PLAN_MODEL, PLAN_PROMPT, PLAN_BEFORE, PLAN_AFTER = "gpt-oss-120b", 2048, 48.9, (50.7, 52.6)
PLAN_OUTPUT = 128
NOTE = (
    "By bytes: the gain if both caches are read equally well and reading is all that takes time. A higher measured"
    " one is not the smaller cache's doing alone: another kernel, or another run of the same one. For limits in"
    " tokens/s, `fp8-sinks roofline` takes the memory's bandwidth."
)


def blocks(result: ServingResult, accuracy: dict[str, str | None], base: str) -> list[str]:
    """Markdown blocks for a serving result, or one line that says why there is no roofline.

    accuracy: each profile's record, None where there is none: its rates are not shown. base: the profile that gains
    are over.
    """
    shape, reason = of_model(result.model), why_not(result)
    if reason or shape is None:
        return [f"No roofline: {reason}."]
    shown = {row.profile: row for row in result.rows if row.rates and accuracy[row.profile]}
    others = [row for name, row in shown.items() if name != base]
    found = _plan_blocks(result, shape, shown, base)
    if base not in shown or not others:
        missing = f"for {md.text(base)}" if base not in shown else f"for a profile beside {md.text(base)}"
        return [*found, f"No measured gain: there is no decode rate with an accuracy record {missing}."]
    for row in others:
        lines = _gain_lines(result, row, shown[base])
        names_of_both = [f"**{md.text(name)}** ({md.text(accuracy[name])})" for name in (row.profile, base)]
        found.append(f"Decode rate of {' over '.join(names_of_both)}{':' if lines else ': no point in common.'}")
        found += [_gain_table(row, base, lines)] if lines else []
    return [*found, NOTE, *_pays_blocks(result, shape, others)]


def why_not(result: ServingResult) -> str | None:
    """Why bytes say nothing of this result's decode rate; None where they do."""
    model = result.model
    if result.provenance.machine.family == "cpu":
        return "on a CPU, arithmetic and not the bytes of the KV cache decides the decode rate"
    if model.weight_bytes < SMALL_WEIGHTS:
        size = f"{plots.number(model.weight_bytes / 1e6)} MB of weights"
        return f"{md.text(model.name)} is too small, {size}: launching kernels, not reading bytes, decides its rate"
    if of_model(model) is None:
        known = ", ".join(names())
        return f"the bytes of {md.text(model.name)} with these sizes are not counted, only those of {known}"
    return None


def _predicted(result: ServingResult, row: ServingRow, rate: Rate) -> Point | None:
    """At 1 byte/s: only ratios of such points mean anything."""
    return predict_measured(result.model, row.resolved, rate.context, rate.concurrency, 1) if row.resolved else None


def _by_bytes(result: ServingResult, row: ServingRow, base: ServingRow, rate: Rate) -> float | None:
    """The predicted rate of `row` over that of `base`, None where one's KV cache is of a format not counted."""
    one, other = _predicted(result, row, rate), _predicted(result, base, rate)
    return one.tokens_s / other.tokens_s if one and other else None


def _gain_lines(result: ServingResult, row: ServingRow, base: ServingRow) -> list[list[str]]:
    of_base = {noise.point(rate): rate for rate in base.rates}
    gains = noise.ratios(row.rates, base.rates)
    lines = []
    for rate in sorted(row.rates, key=lambda rate: (rate.concurrency, rate.output, rate.context)):
        if (place := noise.point(rate)) in gains:
            rates = [plots.number(median(one.decode_tok_s)) for one in (of_base[place], rate)]
            by_bytes = _by_bytes(result, row, base, rate)
            numbers = [f"{rate.context:,}", str(rate.output), str(rate.concurrency)]
            limit = noise.times(by_bytes) if by_bytes else "not counted"
            lines.append([*numbers, *rates, noise.cell(*gains[place]), limit])
    return lines


def _gain_table(row: ServingRow, base: str, lines: list[list[str]]) -> str:
    rates = [f"{base}, tokens/s", f"{row.profile}, tokens/s"]
    return md.table(["context", "output", "requests at once", *rates, "gain, measured", "gain, by bytes"], lines)


def _plan_blocks(result: ServingResult, shape: Shape, shown: dict[str, ServingRow], base: str) -> list[str]:
    """The plan's prompt length alone: what was measured, what bytes allow, what the plan expected."""
    if result.model.name != PLAN_MODEL:
        return []
    others = [row for name, row in shown.items() if base in shown and name != base]
    lines = [line for row in others for line in _plan_measured(result, row, shown[base])]
    by_bytes = gain(shape, "fp8", PLAN_PROMPT + PLAN_OUTPUT // 2, 1)
    after = " to ".join(f"{value:.1f}" for value in PLAN_AFTER)
    expected = " to ".join(noise.times(value / PLAN_BEFORE) for value in PLAN_AFTER)
    lines += [
        ["the original plan, expected on a DGX Spark", f"{PLAN_BEFORE:.1f}", after, expected],
        ["bytes alone, from the plan's rate", f"{PLAN_BEFORE:.1f}", f"{PLAN_BEFORE * by_bytes:.1f}", _limit(by_bytes)],
    ]
    table = md.table(["", "BF16 KV cache, tokens/s", "FP8 KV cache, tokens/s", "gain"], lines)
    return [f"Decode with a prompt of {PLAN_PROMPT:,} tokens and 1 request:", table]


def _plan_measured(result: ServingResult, row: ServingRow, base: ServingRow) -> list[list[str]]:
    """What was measured at the plan's prompt and the longest output, and its limit; for FP8 over BF16 alone."""
    of_base = {noise.point(rate): rate for rate in base.rates}
    at_plan = [
        rate
        for rate in row.rates
        if (rate.depth, rate.prompt, rate.concurrency) == (0, PLAN_PROMPT, 1) and noise.point(rate) in of_base
    ]
    if not at_plan:
        return []
    rate = max(at_plan, key=lambda rate: rate.output)
    place, by_bytes = noise.point(rate), _by_bytes(result, row, base, rate)
    formats = [point.kv_format for one in (base, row) if (point := _predicted(result, one, rate))]
    if len(formats) < 2 or formats[0] != "bf16" or formats[1] == "bf16":
        return []
    rates = [plots.number(median(one.decode_tok_s)) for one in (of_base[place], rate)]
    machine, name = md.text(result.provenance.machine.name), md.text(row.profile)
    measured = [f"{name}, measured on {machine}", *rates, noise.cell(*noise.ratios(row.rates, base.rates)[place])]
    return [measured, [f"{name}, bytes alone", "", "", _limit(by_bytes)]]


def _limit(value: float) -> str:
    return f"at most {noise.times(value)}"


def _pays_blocks(result: ServingResult, shape: Shape, rows: list[ServingRow]) -> list[str]:
    """From which context each quantised profile pays by GAINS over a BF16 cache, at each measured concurrency."""
    lines = []
    for row in rows:
        for batch in sorted({rate.concurrency for rate in row.rates}):
            point = _predicted(result, row, next(rate for rate in row.rates if rate.concurrency == batch))
            if point and point.kv_format != "bf16":
                contexts = [pays_from(shape, point.kv_format, least, batch) for least in GAINS]
                cells = [f"{context:,}" if context else "never" for context in contexts]
                lines.append([md.text(row.profile), str(batch), *cells])
    if not lines:
        return []
    headers = ["", "requests at once", *(f"{least - 1:.0%} faster from" for least in GAINS)]
    said = "By bytes, the context in tokens from which the profile decodes faster than with a BF16 cache:"
    return [said, md.table(headers, lines)]
