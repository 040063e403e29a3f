"""The report's part on decode kernels, from a result of kind `kernels` alone."""

from bench import kernels_plot, plots
from bench import markdown as md
from bench.kernels import gain
from bench.kernels.gain import QUANTISED
from bench.kernels.result import Build, KernelRow, KernelsResult, Tolerance
from bench.report_tables import source_table

# What a kernel that keeps BF16 accuracy may be off, relL2; the bound of the tests in kernels_tests.
KERNEL_BOUND = 4e-3
WORDS = {
    "fa2-no-sinks": "FlashInfer's FA2 as released, without sinks",
    "fa2-sinks": "FA2 with our patches",
    "xqa-sinks": "FlashInfer's XQA as released",
}

NOTE = (
    "Median of the replays of one CUDA graph, microseconds a call; % of ceiling: the bytes that a call must read over"
    " that time, against the fastest read of this run; relL2: error of the timed calls' output against float64"
    f" attention over the cache as stored. Bold: beyond {KERNEL_BOUND:g}, what a kernel with BF16 accuracy keeps."
    " Caches, queries and outputs rotate through several times the GPU's own cache; each kernel at its faster setting."
)
REASON = (
    "That is the format, not a kernel: the tolerance asks for 1%, and the eight bits of an element cannot hold it."
    " E4M3 has three bits of mantissa, so storing a value moves it by up to 6% (2.65% in the root mean square), and no"
    " kernel can tell what it was before. What holds instead, and what the tests demand: the kernel against attention"
    " over the cache as stored, and the format's own error as a bound of its own."
)


def headline(result: KernelsResult) -> str:
    source = result.provenance
    version = source.versions.get("flashinfer-python", "?")
    return md.text(f"Decode kernels on {source.machine.name}, FlashInfer {version}, {source.created:%Y-%m-%d}")


def summary_lines(result: KernelsResult) -> str:
    """The result in a few lines: where FP8 pays and where it does not, the tolerance, what failed."""
    lines = [md.text(gain.message(result, kernel)) for kernel in gain.compared(result)]
    lines += _tolerance_lines(result)
    lines += [f"Failed: {_name(row)} at {_shape(row)}: {md.text(row.error)}" for row in result.rows if row.error]
    return "\n".join(f"- **{topic}:** {rest}" for topic, _, rest in (line.partition(": ") for line in lines))


def blocks(result: KernelsResult, plot_names: dict[str, str]) -> list[str]:
    """Markdown blocks of the whole section."""
    ceiling = f"Read ceiling of this run: {result.read_ceiling_bytes_per_s / 1e12:.2f} TB/s."
    tolerance = _tolerance_table(result)
    return [
        f"## {headline(result)}",
        summary_lines(result),
        *(f"![{md.text(kernels_plot.title(result))}]({path})" for path in plot_names.values()),
        f"{ceiling} {_geometry(result)}",
        _time_table(result),
        NOTE,
        *(["### The original plan's tolerance", tolerance, REASON] if tolerance else []),
        "### Builds",
        _build_table(result),
        "### Where it comes from",
        source_table(result, [["kernels", md.text(_kernels(result))]]),
        md.details("Command", [md.block(md.shell(result.provenance.command), "sh")]),
    ]


def _tolerance_lines(result: KernelsResult) -> list[str]:
    """How much of each kernel's output misses the original plan's tolerance against a BF16 cache."""
    lines = []
    for kernel in dict.fromkeys(one.kernel for one in result.tolerance):
        found = [one for one in result.tolerance if (one.kernel, one.kv_format) == (kernel, QUANTISED)]
        found = [one for one in found if one.error is None]
        if found:
            of_bf16, stored = ([getattr(one, key) for one in found] for key in ("missed_bf16", "missed_stored"))
            lines.append(
                f"Tolerance of the original plan, {md.text(kernel)} {QUANTISED}: {_percents(of_bf16)} of the elements"
                f" miss rtol {found[0].rtol:g}, atol {found[0].atol:g} against a BF16 cache, {_percents(stored)}"
                " against the cache as stored: storing eight bits rounds by more than that, whatever the kernel"
            )
    return lines


def _time_table(result: KernelsResult) -> str:
    columns = _columns(result.rows)
    places = list(dict.fromkeys((row.batch, row.context) for row in result.rows))
    rows = {(row.batch, row.context, row.kernel, row.kv_format): row for row in result.rows}
    lines = []
    for place in places:
        of_place = [row for row in result.rows if (row.batch, row.context) == place]
        floors = {row.kv_format: row.kv_bytes / result.read_ceiling_bytes_per_s * 1e6 for row in of_place}
        floor = " / ".join(plots.number(floors[name]) for name in sorted(floors))
        lines.append([_shape(of_place[0]), floor, *(_cell(result, rows.get((*place, *one))) for one in columns)])
    formats = " / ".join(sorted({row.kv_format for row in result.rows}))
    return md.table(["batch x context", f"floor {formats}, us", *(" ".join(one) for one in columns)], lines)


def _cell(result: KernelsResult, row: KernelRow | None) -> str:
    if row is None:
        return "not measured"
    if row.error:
        return "**failed**"
    share = row.kv_bytes / (row.time_us * 1e-6) / result.read_ceiling_bytes_per_s
    return f"{plots.number(row.time_us)} us, {share:.0%}, {_error(row.rel_l2)}"


def _error(rel_l2: float) -> str:
    return f"**{rel_l2:.1e}**" if rel_l2 > KERNEL_BOUND else f"{rel_l2:.1e}"


def _tolerance_table(result: KernelsResult) -> str:
    """Empty where nothing was held against it."""
    lines = []
    for one in result.tolerance:
        name = f"{md.text(one.kernel)} {one.kv_format}"
        cells = [_shape(one), name]
        if one.error:
            lines.append([*cells, "**failed**", "", "", ""])
            continue
        missed = (one.missed_bf16, one.missed_stored)
        errors = (one.rel_l2_bf16, one.rel_l2_stored)
        lines.append([*cells, *map(_percent, missed), *(f"{value:.1e}" for value in errors)])
    headers = ["batch x context", "kernel", "misses it against a BF16 cache", "against the cache as stored"]
    return md.table([*headers, "relL2, BF16 cache", "relL2, as stored"], lines) if lines else ""


def _build_table(result: KernelsResult) -> str:
    lines = [
        [md.text(f"{one.kernel} {one.kv_format}"), f"**failed**: {md.text(one.error)}" if one.error else _seconds(one)]
        for one in result.builds
    ]
    return md.table(["kernel", "compile, load and run once with an empty cache, s"], lines)


def _seconds(build: Build) -> str:
    return plots.number(build.seconds)


def _geometry(result: KernelsResult) -> str:
    of = result.geometry
    return (
        f"{of.query_heads} query heads over {of.kv_heads} KV heads of {of.head_dim} values, pages of {of.page_size}"
        f" tokens ({of.layout}), {of.query_format} query, one query token a request."
    )


def _kernels(result: KernelsResult) -> str:
    names = dict.fromkeys(row.kernel for row in result.rows)
    return "; ".join(f"{name}: {WORDS[name]}" if name in WORDS else name for name in names)


def _columns(rows: list[KernelRow]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.kernel, row.kv_format) for row in rows))


def _name(row: KernelRow) -> str:
    return md.text(f"{row.kernel} {row.kv_format}")


def _shape(row: KernelRow | Tolerance) -> str:
    return f"{row.batch} x {row.context:,}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _percents(shares: list[float]) -> str:
    lowest, highest = _percent(min(shares)), _percent(max(shares))
    return lowest if lowest == highest else f"{lowest} to {highest}"
