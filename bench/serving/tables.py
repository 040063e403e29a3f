"""The tables below a report's first screen: settings, starts, all rates, answers, provenance."""

from collections.abc import Callable
from statistics import median

from bench.accuracy.verdicts import GreedyMatch
from bench.kernels.result import KernelsResult
from bench.report import markdown as md
from bench.servers.result import Start
from bench.serving import plot as plots
from bench.serving.result import Rate, ServingResult, ServingRow
from vllm_launch.provenance import Provenance
from vllm_launch.resolved import Resolved, canonical_kv_dtype

NOT_SHOWN = "not shown: no accuracy record"
GIB = 1 << 30
OWN_LOAD = 2  # what our API server and client add to the load average, beside an engine on all cores
GREEDY_LIMIT = (
    "Greedy match cannot judge a cache format alone: where margins are large a coarser cache passes too,"
    " where they are small a match is luck."
)


def resolved_table(result: ServingResult) -> str:
    """What was asked of vLLM and what it really uses, setting by setting."""
    found = [row.resolved for row in result.rows]
    asked = [row.requested for row in result.rows]

    def cells(text: Callable[[Resolved], str]) -> list[str]:
        return ["not read back" if one is None else md.text(text(one)) for one in found]

    return md.table(
        ["", *(row.profile for row in result.rows)],
        [
            ["description", *(md.text(row.description) for row in result.rows)],
            ["attention backend, requested", *(md.text(", ".join(one.attention_backends)) for one in asked)],
            ["attention backend, resolved", *cells(lambda one: ", ".join(one.attention_backends))],
            ["KV cache dtype, requested", *(md.text(one.kv_cache_dtype) for one in asked)],
            ["KV cache dtype, resolved", *cells(_kv_dtype)],
            ["KV capacity, tokens, resolved", *cells(lambda one: f"{one.kv_capacity_tokens:,}")],
            ["CUDA graphs", *cells(lambda one: one.cuda_graphs)],
            ["rounding CPU cache writer", *cells(lambda one: "yes" if one.cpu_cache_writer else "no")],
        ],
    )


def _kv_dtype(resolved: Resolved) -> str:
    dtype = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    dtype += ", widened for a kernel without FP8" if resolved.cpu_attention == "widened" else ""
    skipped = ", ".join(resolved.kv_skip_layers)
    return f"{dtype}; {resolved.model_dtype} in layers {skipped}" if skipped else dtype


def timed(row: ServingRow) -> list[Start]:
    """The starts whose times are shown: not those of servers that only gave log-probabilities.

    Nor a warm one where the cold one cached nothing: a resumed run makes it, and finds what the cold one found.
    """
    cached_nothing = any(start.cache == "cold" and start.cached_files == 0 for start in row.starts)
    shown = ("cold",) if cached_nothing else ("cold", "warm")
    return [start for start in row.starts if start.cache in shown]


def starts_table(result: ServingResult) -> str:
    lines = []
    for row in result.rows:
        for start in timed(row):
            seconds = [plots.number(start.start_s), plots.number(start.first_token_s)]
            wiped = ""
            if row.wiped and start.cache == "cold":
                wiped = f"{row.wiped.files:,} files, {row.wiped.bytes / (1 << 20):,.1f} MiB"
            cached = "" if start.cached_files is None else f"{start.cached_files:,}"
            lines.append([md.text(row.profile), start.cache, *seconds, wiped, cached])
    headers = ["profile", "caches", "launch to ready, s", "request to first token, s", "caches wiped before"]
    headers += ["files in them after"]
    return md.table(headers, lines) if lines else "No server started."


def rate_tables(result: ServingResult, accuracy: dict[str, str | None]) -> list[str]:
    blocks = ["Median (slowest to fastest sample); decode and prefill sum over the requests at once."]
    for row in result.rows:
        if not row.rates:
            blocks.append(f"**{md.text(row.profile)}**: not measured")
        elif not accuracy[row.profile]:
            blocks.append(f"**{md.text(row.profile)}**: {NOT_SHOWN}")
        else:
            blocks.append(md.details(f"{row.profile} ({accuracy[row.profile]})", [_rate_table(row.rates)]))
    return blocks


def _rate_table(rates: list[Rate]) -> str:
    headers = ["context (depth + prompt)", "output", "requests at once", "samples"]
    headers += ["decode, tokens/s", "prefill, tokens/s", "first token, ms"]
    lines = [
        [
            f"{rate.context:,} ({rate.depth:,} + {rate.prompt:,})",
            *(str(rate.output), str(rate.concurrency), str(len(rate.decode_tok_s))),
            *map(_spread, (rate.decode_tok_s, rate.prefill_tok_s, rate.first_token_ms)),
        ]
        for rate in sorted(rates, key=lambda rate: (rate.concurrency, rate.output, rate.context))
    ]
    return md.table(headers, lines)


def _spread(samples: list[float]) -> str:
    return f"{plots.number(median(samples))} ({plots.number(min(samples))} to {plots.number(max(samples))})"


def greedy_texts(result: ServingResult) -> list[str]:
    blocks = [GREEDY_LIMIT]
    for row in result.rows:
        lines = []
        for match in row.greedy:
            outcome = verdict("pass" if match.passed else "FAILED")
            lines.append(f"- {md.code(match.prompt)}: {outcome}, {match_words(match)}")
            answers = {match.reference: match.reference_text, row.profile: match.text}
            lines += [f"  - {md.text(profile)}: {md.code(text)}" for profile, text in answers.items()]
        if lines:
            blocks.append(md.details(row.profile, ["\n".join(lines)]))
        elif row.completion is not None:
            blocks.append(f"**{md.text(row.profile)}**, first prompt: {md.code(row.completion)}")
    return blocks


def verdict(text: str) -> str:
    return f"**{text}**" if text.startswith("FAILED") else text


def match_words(match: GreedyMatch) -> str:
    equal = f"{match.matched} of {match.tokens} tokens equal, {match.distinct} distinct"
    return f"{equal}, margin {plots.number(match.margin)} nats"


def provenance(result: ServingResult) -> list[str]:
    model = result.model
    weights = f"{model.weight_bytes / GIB:.2f} GiB of weights"
    about = [["model", md.text(f"{model.name}, {model.layers} layers, {weights}")]]
    commands = [md.block(md.shell(result.provenance.command), "sh")]
    for row in result.rows:
        variables = [f"{name}={value}" for name, value in sorted(row.requested.environment.items())]
        command = md.shell(["env", *variables]) + " \\\n  " + md.shell(row.requested.command)
        commands += [f"Server of {md.text(row.profile)}:", md.block(command, "sh")]
    return [source_table(result, about), md.details("Commands", commands)]


def commit_words(source: Provenance, digits: int | None = None) -> str:
    """The commit, or its first digits, and whether the files were the commit's."""
    if source.git_commit is None:
        return "not known"
    state = {True: " with changes", False: "", None: ", git state not known"}[source.git_dirty]
    return f"{source.git_commit[:digits]}{state}"


def load_words(result: ServingResult | KernelsResult) -> str:
    """The load average before the run, and the highest one at a rate's point."""
    before, during = result.provenance.load_average, _highest_load(result)
    words = [f"{before:.1f} before the run"] if before is not None else []
    words += [f"at most {during:.1f} while rates were measured"] if during is not None else []
    return f"{', '.join(words)}; {result.provenance.machine.cores} cores" if words else "not recorded"


def load_warnings(result: ServingResult) -> list[str]:
    """A line of plain text, "topic: rest", where other work kept the machine busy."""
    cores, before, during = result.provenance.machine.cores, result.provenance.load_average, _highest_load(result)
    busy = before is not None and before > cores  # less may be a set-up that had just ended
    busy = busy or (during is not None and during > cores + OWN_LOAD)
    return [f"Other work on the machine: load average {load_words(result)}: speeds may be too low"] if busy else []


def _highest_load(result: ServingResult | KernelsResult) -> float | None:
    rates = [rate for row in result.rows for rate in row.rates] if result.kind == "serving" else []
    return max((rate.load_average for rate in rates if rate.load_average is not None), default=None)


def source_table(result: ServingResult | KernelsResult, about: list[list[str]]) -> str:
    """Machine, versions and commit of a result of any kind. about: lines on what was measured."""
    source, machine = result.provenance, result.provenance.machine
    device = f"{machine.gpus} GPU, driver {machine.driver}" if machine.gpus else f"{machine.cores} cores"
    memory = f"{machine.total_bytes / GIB:.0f} GiB of memory"
    lines = [
        ["result", md.text(result.id)],
        ["made", f"{source.created:%Y-%m-%d %H:%M %Z}".strip()],
        ["machine", md.text(f"{machine.name} ({machine.family}), {device}, {memory}")],
        *about,
        ["load average", load_words(result)],
        ["commit", commit_words(source)],
        ["FlashInfer patch set", md.text(source.patch)],
        *([md.text(name), md.text(version)] for name, version in sorted(source.versions.items())),
    ]
    return md.table(["", ""], lines)
