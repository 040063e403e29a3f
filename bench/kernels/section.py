"""The report's part on decode kernels, from a result of kind `kernels` alone."""

from bench.kernels import claims, gain, tables
from bench.kernels import plot as kernels_plot
from bench.kernels.gain import QUANTISED
from bench.kernels.peers import OURS
from bench.kernels.result import KernelsResult
from bench.report import markdown as md
from bench.serving.tables import source_table

MOST_NAMED = 3  # shapes that a line names
WORDS = {
    OURS: "our kernel",
    "fa2-no-sinks": "FlashInfer's FA2 as released, without sinks",
    "fa2-sinks": "FA2 with our patches",
    "xqa-sinks": "FlashInfer's XQA as released",
    "vllm-fa3": "vLLM's FlashAttention 3 (with an FP8 cache its query is FP8 too, quantised before the timed call)",
    "vllm-triton": "vLLM's Triton attention, BF16 query",
}

NOTE = (
    "Time: median of the replays of one CUDA graph, microseconds a call. Floor: the bytes that a call must read over"
    " the fastest read of this run. relL2: error of the timed calls' output against float64 attention over the cache"
    " as stored, in the first and last two requests and the longest, of two layers; bold: beyond"
    f" {tables.KERNEL_BOUND:g}, what a kernel with BF16 accuracy keeps. Caches, queries and outputs rotate through"
    " several times the GPU's own cache; each kernel at its fastest setting."
)
BUILD_NOTE = (
    "The smallest call of all, with an empty cache. FlashInfer's kernels compile several at once and wait for each"
    f" other's share of the cores; {OURS} compiles a launch of its own for some shapes, in about the same time each."
)


def headline(result: KernelsResult) -> str:
    source = result.provenance
    version = source.versions.get("flashinfer-python", "?")
    return md.text(f"Decode kernels on {source.machine.name}, FlashInfer {version}, {source.created:%Y-%m-%d}")


def glance_lines(result: KernelsResult) -> str:
    """The result in the fewest lines: our kernel against the others, and where FP8 pays through each."""
    lines = [md.text(gain.message(result, kernel)) for kernel in gain.compared(result)]
    return _listed([*_ours_lines(result), *lines])


def summary_lines(result: KernelsResult) -> str:
    """The result in a few lines: what our kernel shows, where FP8 pays, what failed or was left out."""
    lines = _ours_lines(result)
    lines += [
        f"{md.text(one.topic)}: {'met' if one.met else '**not met**'}, {md.text(one.words)}"
        for one in claims.claims(result)
    ]
    lines += [md.text(gain.message(result, kernel)) for kernel in gain.compared(result)]
    return _listed([*lines, *_failed_lines(result), *_left_out_lines(result)])


def _listed(lines: list[str]) -> str:
    """Lines of the form "topic: words"."""
    return "\n".join(f"- **{topic}:** {rest}" for topic, _, rest in (line.partition(": ") for line in lines))


def _ours_lines(result: KernelsResult) -> list[str]:
    """Our kernel with an FP8 cache, where it was measured."""
    if not claims.ours(result, QUANTISED):
        return []
    law = f"the law is {claims.LAW_US:g} us + bytes / ({claims.LAW_SHARE:g} x read ceiling)"
    return [f"{md.text(kernels_plot.title(result))}; {law}"]


def blocks(result: KernelsResult, plot_names: dict[str, str]) -> list[str]:
    """Markdown blocks of the whole section."""
    ceiling = f"Read ceiling of this run: {result.read_ceiling_bytes_per_s / 1e12:.2f} TB/s."
    left_out = tables.left_out_table(result)
    return [
        f"## {headline(result)}",
        summary_lines(result),
        *(f"![{md.text(kernels_plot.title(result))}]({path})" for path in plot_names.values()),
        f"{ceiling} {_geometry(result)}",
        *tables.law_tables(result),
        *tables.time_tables(result),
        NOTE,
        *tables.own_gain_table(result),
        *(["### Not measured", left_out] if left_out else []),
        "### Builds",
        tables.build_table(result),
        BUILD_NOTE,
        "### Where it comes from",
        source_table(result, [["kernels", md.text(_kernels(result))]]),
        md.details("Command", [md.block(md.shell(result.provenance.command), "sh")]),
    ]


def _geometry(result: KernelsResult) -> str:
    of = result.geometry
    return (
        f"{of.query_heads} query heads over {of.kv_heads} KV heads of {of.head_dim} values unless said, pages of"
        f" {of.page_size} tokens ({of.layout} unless said), {of.query_format} query, one query token a request."
    )


def _kernels(result: KernelsResult) -> str:
    names = dict.fromkeys(row.kernel for row in result.rows)
    return "; ".join(f"{name}: {WORDS[name]}" if name in WORDS else name for name in names)


def _failed_lines(result: KernelsResult) -> list[str]:
    """What failed, shapes of one kernel and error together."""
    failed: dict[tuple[str, str], list[str]] = {}
    for row in result.rows:
        if row.error:
            failed.setdefault((f"{row.kernel} {row.kv_format}", row.error), []).append(row.shape.words)
    return [
        f"Failed: {md.text(name)} at {'; '.join(shapes) if len(shapes) <= MOST_NAMED else f'{len(shapes)} shapes'}:"
        f" {md.text(error)}"
        for (name, error), shapes in failed.items()
    ]


def _left_out_lines(result: KernelsResult) -> list[str]:
    """Kernels that were not measured at all."""
    names: dict[str, list[str]] = {}
    for one in result.left_out:
        if one.shape is None:
            names.setdefault(one.reason, []).append(f"{one.kernel} {one.kv_format}")
    return [f"Left out: {md.text(', '.join(of_one))}: {md.text(reason)}" for reason, of_one in names.items()]
