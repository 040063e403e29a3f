"""`fp8-sinks bench compare A B`: two profiles of result files side by side, B over A, with noise and accuracy.

Only the requested KV cache and its decoder may differ, and what follows from them. Any other difference is refused, or
forced and marked. Law: a speed is shown only beside an accuracy record.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

from bench.accuracy.tables import NO_RECORD, answers, base_of, has_record, outcome
from bench.record import noise
from bench.report import provenance
from bench.report.numbers import aligned, number, times
from bench.serving import tables
from bench.serving.comparable import NOT_KNOWN, NOT_READ, Difference, differences
from bench.serving.compare_speed import SPEEDS, figures, latencies, latency_text, speed, speed_text
from bench.serving.result import ServingResult, ServingRow
from bench.serving.section import highest_load
from flashinfer_patches.errors import Problem

STARTS = {"start_s": "server start", "first_token_s": "first token after it"}
NOISE = (
    f"±: the noise, {noise.NOISE_ERRORS} standard errors of these samples. Another start of the same server can differ"
    " by more.\nPrefill and decode sum over the requests at once; first token: the mean over them."
)


class Side(NamedTuple):
    """One profile of a result file."""

    file: str
    result: ServingResult
    row: ServingRow


def compare(a: str, b: str, read: Callable[[Path], Any], *, force: bool = False, as_json: bool = False) -> str:
    """The comparison of B with A as text or JSON. a, b: a result file, or FILE:PROFILE; read: reads a result file.

    Profiles of the same name are paired, unless both are named. Raises Problem("compare") with the list where the
    two differ in more than the KV cache and its decoder and `force` is not given, Problem("file") for a file that is no
    result, and click.UsageError for an absent profile and for nothing to pair.
    """
    pairs, unpaired = pairs_of(a, b, read)
    lines = _difference_lines(pairs)
    if lines and not force:
        raise Problem(
            "compare",
            f"{a} and {b} differ in more than the KV cache and its decoder:\n" + "\n".join(lines),
            "compare runs of one machine, model, software and flags, or add --force to compare them nevertheless",
        )
    records = [record(*pair) for pair in pairs]
    if as_json:
        return json.dumps({"a": a, "b": b, "forced": bool(lines), "not_paired": unpaired, "pairs": records}, indent=1)
    forced = [
        "FORCED: A and B differ in more than the KV cache and its decoder; the ratios do not measure those alone:",
        *lines,
    ]
    texts = ["\n".join(forced)] if lines else []
    texts += [as_text(pair, forced=bool(lines)) for pair in records]
    texts += [f"Only in {side.upper()}, not compared: {', '.join(names)}" for side, names in unpaired.items() if names]
    return "\n\n".join([*texts, NOISE])


def pairs_of(a: str, b: str, read: Callable[[Path], Any]) -> tuple[list[tuple[Side, Side]], dict[str, list[str]]]:
    """The pairs of profiles to compare, and the profiles that only one of the files has."""
    (file_a, name_a), (file_b, name_b) = _split(a), _split(b)
    sides_a = _sides(file_a, read(Path(file_a)), name_a or name_b)
    sides_b = _sides(file_b, read(Path(file_b)), name_b or name_a)
    if name_a or name_b:
        return [(next(iter(sides_a.values())), next(iter(sides_b.values())))], {"a": [], "b": []}
    pairs = [(side, sides_b[name]) for name, side in sides_a.items() if name in sides_b]
    if not pairs:
        raise click.UsageError(
            f"no profile is in both: {a} has {', '.join(sides_a)}, {b} has {', '.join(sides_b)};"
            " name a profile of each: FILE:PROFILE FILE:PROFILE"
        )
    return pairs, {
        "a": [name for name in sides_a if name not in sides_b],
        "b": [name for name in sides_b if name not in sides_a],
    }


def _split(text: str) -> tuple[str, str | None]:
    """File and profile of FILE or FILE:PROFILE; a file may have a colon in its name."""
    file, colon, profile = text.rpartition(":")
    return (text, None) if not colon or Path(text).exists() else (file, profile)


def _sides(file: str, result: Any, profile: str | None) -> dict[str, Side]:
    """The profiles of a file, or the named profile alone."""
    if result.kind != "serving":
        raise click.UsageError(f"{file} is a result of kind {result.kind}: only serving results are compared")
    sides = {row.profile: Side(file, result, row) for row in result.rows}
    if profile is not None and profile not in sides:
        raise click.UsageError(f"{file} has no profile {profile!r}; it has {', '.join(sides) or 'none'}")
    return sides if profile is None else {profile: sides[profile]}


def _differences(a: Side, b: Side) -> list[Difference]:
    return differences(a.result, a.row, b.result, b.row)


def _difference_lines(pairs: list[tuple[Side, Side]]) -> list[str]:
    """Each difference once, with the names of the profiles where it is not in all of them."""
    names: dict[Difference, list[str]] = {}
    for a, b in pairs:
        for difference in _differences(a, b):
            names.setdefault(difference, []).append(a.row.profile)
    return [
        f"  {setting}: {in_a} | {in_b}" + (f"  ({', '.join(profiles)})" if len(profiles) < len(pairs) else "")
        for (setting, in_a, in_b), profiles in names.items()
    ]


def record(a: Side, b: Side) -> dict:
    """One comparison as plain data: ratios are B over A, `noise` is null where it is not known."""
    reason = _why_no_speed(a, b)
    points = [set(tables.samples(side.row.rates)) for side in (a, b)]
    capacities = [side.row.resolved.kv_capacity_tokens if side.row.resolved else None for side in (a, b)]
    return {
        "a": _described(a),
        "b": _described(b),
        "differences": [difference._asdict() for difference in _differences(a, b)],
        "kv_capacity_tokens": figures(*capacities),
        "starts": [_start(a, b, field, cache) for field in STARTS for cache in ("cold", "warm")],
        "not_shown": reason,
        "speeds": {} if reason else {field: speed(a.row.rates, b.row.rates, field) for field in SPEEDS},
        "latencies": {} if reason else latencies(a.row.rates, b.row.rates, a.result.slo, b.result.slo),
        "points_only_in": {"a": len(points[0] - points[1]), "b": len(points[1] - points[0])},
    }


def _why_no_speed(a: Side, b: Side) -> str | None:
    """Why no speeds are compared; None if they are."""
    if missing := [name for name, side in (("A", a), ("B", b)) if not has_record(side.row)]:
        return f"no accuracy record of {' and '.join(missing)}"
    widened = [side.row.profile for side in (a, b) if tables.is_widened(side.row)]
    return f"{widened[0]} {tables.WIDENED}" if len(widened) == 1 else None


def _described(side: Side) -> dict:
    source, resolved, agreement = side.result.provenance, side.row.resolved, side.row.accuracy
    base = base_of(side.result.rows)
    warning = provenance.load_warning(source, highest_load(side.result))
    return {
        "file": side.file,
        "profile": side.row.profile,
        "model": side.result.model.name,
        "started_by_us": side.row.requested is not None,
        "machine": source.machine.name if side.row.requested else NOT_KNOWN,
        "created": source.created.isoformat(),
        "git_commit": source.git_commit,
        "git_dirty": source.git_dirty,
        "commit": provenance.commit(source),
        "resolved": resolved.model_dump() | {"kv_cache": tables.kv_cache(resolved)} if resolved else None,
        "accuracy": answers(side.row, base),
        "outcome": outcome(side.row, base),
        "greedy": [match.model_dump() for match in side.row.greedy],
        "agreement": agreement.model_dump(mode="json") if agreement else None,
        "left_out": side.row.left_out,
        "warnings": [warning] if warning else [],
        "failures": [failure.model_dump() for failure in side.row.failures],
    }


def _start(a: Side, b: Side, field: str, cache: str) -> dict:
    """Medians, in seconds. A run starts a profile once for each state of the caches, so that their noise is unknown."""
    starts = [[start for start in tables.timed(side.row) if start.cache == cache] for side in (a, b)]
    medians = [median(getattr(start, field) for start in of_side) if of_side else None for of_side in starts]
    return {"field": field, "cache": cache} | figures(*medians)


def as_text(pair: dict, *, forced: bool) -> str:
    """A record() for the terminal. forced: mark the ratios' headers."""
    mark = "B/A, FORCED" if forced else "B/A"
    sides = pair["a"], pair["b"]
    heads = [line for name, side in zip("AB", sides, strict=True) for line in _head(name, side)]
    lines = [
        ["", "A", "B", mark],
        *_resolved(sides),
        ["KV capacity, tokens", *_cells(pair["kv_capacity_tokens"], "{:,}".format)],
        *([f"{STARTS[start['field']]}, {start['cache']}, s", *_cells(start, number)] for start in pair["starts"]),
    ]
    blocks = ["\n".join(heads), f"{aligned(lines, left=0)}\nStarts are too few to know their noise."]
    if pair["not_shown"]:
        blocks.append(f"Decode rate, prefill rate, first token: not shown: {pair['not_shown']}")
    blocks += [speed_text(field, compared, mark) for field, compared in pair["speeds"].items()]
    blocks += latency_text(pair["latencies"], mark)
    unpaired = [f"{count} only in {side.upper()}" for side, count in pair["points_only_in"].items() if count]
    return "\n\n".join([*blocks, *([f"Points not compared: {', '.join(unpaired)}"] if unpaired else [])])


def _head(name: str, side: dict) -> list[str]:
    agreement = side["agreement"]
    of_path = agreement and (agreement["decode"] or agreement["prefill"])
    kl = f"; KL {of_path['kl']['value']:.2g} nats a token" if of_path else ""
    return [
        f"{name}: {side['profile']} of {side['file']}",
        f"   {side['model']} on {side['machine']}, {side['created'][:10]}, commit {side['commit']}",
        f"   answers: {side['accuracy'] or NO_RECORD}{kl}",
        *([f"   quick run, not measured: {', '.join(side['left_out'])}"] if side["left_out"] else []),
        *(f"   {line}" for line in side["warnings"]),
        *(
            f"   FAILED in step {failure['step']}: {' '.join(failure['message'].split())}"
            for failure in side["failures"]
        ),
    ]


def _resolved(sides: tuple[dict, dict]) -> list[list[str]]:
    readers = {
        "KV cache": lambda settings: settings["kv_cache"],
        "decoder": lambda settings: settings["decoder"],
        "attention backend": lambda settings: ", ".join(settings["attention_backends"]),
        "CUDA graphs": lambda settings: settings["cuda_graphs"],
    }
    return [
        [label, *(read(side["resolved"]) if side["resolved"] else _absent(side) for side in sides), ""]
        for label, read in readers.items()
    ]


def _absent(side: dict) -> str:
    return NOT_READ if side["started_by_us"] else NOT_KNOWN


def _cells(figures: dict, write: Callable[[float], str]) -> list[str]:
    values = ["-" if figures[side] is None else write(figures[side]) for side in ("a", "b")]
    return [*values, times(figures["ratio"]) if figures["ratio"] else "-"]
