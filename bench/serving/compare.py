"""`fp8-sinks bench compare A B`: two profiles of result files side by side, B over A, with noise and accuracy.

What may differ is the KV cache that was asked for, and what follows from it. Where anything else does, the comparison
is refused, or forced and marked. Law: a speed is shown only beside an accuracy record.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import click

from bench.accuracy import section as report_accuracy
from bench.kinds import read
from bench.record import noise
from bench.serving import plot as plots
from bench.serving import section as summary
from bench.serving import tables
from bench.serving.comparable import NOT_READ, Difference, differences
from bench.serving.result import Rate, ServingResult, ServingRow
from flashinfer_patches.errors import Problem
from vllm_launch.resolved import canonical_kv_dtype

# Field of Rate -> what it is, and whether more is faster.
SPEEDS = {
    "decode_tok_s": ("Decode rate, tokens/s", True),
    "prefill_tok_s": ("Prefill rate, tokens/s", True),
    "first_token_ms": ("First token, ms", False),
}
STARTS = {"start_s": "server start", "first_token_s": "first token after it"}
NOISE = (
    f"±: the noise, {noise.NOISE_ERRORS} standard errors of these samples. Another start of the same server can differ"
    " by more.\nPrefill and decode sum over the requests at once; first token: the mean over them."
)


class Side(NamedTuple):
    """One profile of a result file. accuracy: its greedy answers in a few words, None where there are none."""

    file: str
    result: ServingResult
    row: ServingRow
    accuracy: str | None


def compare(a: str, b: str, *, force: bool = False, as_json: bool = False) -> str:
    """The comparison of B with A as text or JSON. a, b: a result file, or FILE:PROFILE.

    Profiles of the same name are paired, unless both are named. Raises Problem("compare") with the list where the
    two differ in more than the KV cache and `force` is not given, Problem("file") for a file that is no result, and
    click.UsageError for a profile that is not there and for nothing to pair.
    """
    pairs, alone = pairs_of(a, b)
    lines = _difference_lines(pairs)
    if lines and not force:
        raise Problem(
            "compare",
            f"{a} and {b} differ in more than the KV cache:\n" + "\n".join(lines),
            "compare runs of one machine, model, software and flags, or add --force to see them all the same",
        )
    records = [record(*pair) for pair in pairs]
    if as_json:
        return json.dumps({"a": a, "b": b, "forced": bool(lines), "not_paired": alone, "pairs": records}, indent=1)
    forced = ["FORCED: no ratio is the KV cache's doing alone, A and B differ in more:", *lines]
    texts = ["\n".join(forced)] if lines else []
    texts += [as_text(one, forced=bool(lines)) for one in records]
    texts += [f"Only in {side.upper()}, not compared: {', '.join(names)}" for side, names in alone.items() if names]
    return "\n\n".join([*texts, NOISE])


def pairs_of(a: str, b: str) -> tuple[list[tuple[Side, Side]], dict[str, list[str]]]:
    """What is compared with what, and the profiles that only one of the files has."""
    (file_a, name_a), (file_b, name_b) = _split(a), _split(b)
    of_a, of_b = _sides(file_a, name_a or name_b), _sides(file_b, name_b or name_a)
    if name_a or name_b:
        return [(next(iter(of_a.values())), next(iter(of_b.values())))], {"a": [], "b": []}
    pairs = [(side, of_b[name]) for name, side in of_a.items() if name in of_b]
    if not pairs:
        raise click.UsageError(
            f"no profile is in both: {a} has {', '.join(of_a)}, {b} has {', '.join(of_b)};"
            " name one of each: FILE:PROFILE FILE:PROFILE"
        )
    return pairs, {"a": [name for name in of_a if name not in of_b], "b": [name for name in of_b if name not in of_a]}


def _split(text: str) -> tuple[str, str | None]:
    """File and profile of FILE or FILE:PROFILE; a file may have a colon in its name."""
    file, colon, profile = text.rpartition(":")
    return (text, None) if not colon or Path(text).exists() else (file, profile)


def _sides(file: str, profile: str | None) -> dict[str, Side]:
    """The profiles of a file, or the one that is named."""
    result = read(Path(file))
    if result.kind != "serving":
        raise click.UsageError(f"{file} is a result of kind {result.kind}: only serving results are compared")
    accuracy = summary.accuracies(result)
    sides = {row.profile: Side(file, result, row, accuracy[row.profile]) for row in result.rows}
    if profile is not None and profile not in sides:
        raise click.UsageError(f"{file} has no profile {profile!r}; it has {', '.join(sides) or 'none'}")
    return sides if profile is None else {profile: sides[profile]}


def _differences(a: Side, b: Side) -> list[Difference]:
    return differences(a.result, a.row, b.result, b.row)


def _difference_lines(pairs: list[tuple[Side, Side]]) -> list[str]:
    """Each difference once, with the names of the profiles where it is not all of them."""
    names: dict[Difference, list[str]] = {}
    for a, b in pairs:
        for one in _differences(a, b):
            names.setdefault(one, []).append(a.row.profile)
    return [
        f"  {one.what}: {one.a} | {one.b}" + (f"  ({', '.join(of_one)})" if len(of_one) < len(pairs) else "")
        for one, of_one in names.items()
    ]


def record(a: Side, b: Side) -> dict:
    """One comparison as plain data: ratios are B over A, `noise` is null where it is not known."""
    reason = _why_no_speed(a, b)
    points = [{noise.point(rate) for rate in side.row.rates} for side in (a, b)]
    capacities = [side.row.resolved.kv_capacity_tokens if side.row.resolved else None for side in (a, b)]
    return {
        "a": _described(a),
        "b": _described(b),
        "differences": [one._asdict() for one in _differences(a, b)],
        "kv_capacity_tokens": _figures(*capacities),
        "starts": [_start(a, b, field, cache) for field in STARTS for cache in ("cold", "warm")],
        "not_shown": reason,
        "speeds": {} if reason else {field: _speed(a, b, field) for field in SPEEDS},
        "points_only_in": {"a": len(points[0] - points[1]), "b": len(points[1] - points[0])},
    }


def _why_no_speed(a: Side, b: Side) -> str | None:
    """Why no speeds are compared; None if they are."""
    missing = [name for name, side in (("A", a), ("B", b)) if not side.accuracy]
    if missing:
        return f"no accuracy record of {' and '.join(missing)}"
    widened = [side.row.profile for side in (a, b) if summary.is_widened(side.row)]
    return f"{widened[0]} {summary.WIDENED}" if len(widened) == 1 else None


def _described(side: Side) -> dict:
    source, resolved, agreement = side.result.provenance, side.row.resolved, side.row.accuracy
    outcome = {True: "pass", False: "FAILED", None: "not judged"}[agreement.passed if agreement else None]
    outcome += report_accuracy.judged_later(agreement) if agreement else ""
    return {
        "file": side.file,
        "profile": side.row.profile,
        "model": side.result.model.name,
        "machine": source.machine.name,
        "created": source.created.isoformat(),
        "git_commit": source.git_commit,
        "git_dirty": source.git_dirty,
        "commit": tables.commit_words(source, 10),
        "resolved": resolved.model_dump() if resolved else None,
        "accuracy": side.accuracy,
        "greedy": [match.model_dump() for match in side.row.greedy],
        "agreement": agreement.model_dump(mode="json") | {"verdict": outcome} if agreement else None,
        "warnings": tables.load_warnings(side.result),
        "failures": [failure.model_dump() for failure in side.row.failures],
    }


def _figures(a: float | None, b: float | None) -> dict:
    return {"a": a, "b": b, "ratio": b / a if a and b else None}


def _start(a: Side, b: Side, field: str, cache: str) -> dict:
    """Medians, in seconds. A run starts a profile once for each state of the caches: that tells no noise."""
    seconds = [[getattr(one, field) for one in tables.timed(side.row) if one.cache == cache] for side in (a, b)]
    return {"what": field, "cache": cache} | _figures(*(median(one) if one else None for one in seconds))


def _speed(a: Side, b: Side, field: str) -> dict:
    """One kind of speed at all common points, and what it says in one line."""
    of_a, of_b = ([_as_decode(rate, field) for rate in side.row.rates] for side in (a, b))
    middles = [{noise.point(rate): median(rate.decode_tok_s) for rate in rates} for rates in (of_a, of_b)]
    found, points, more_is_faster = noise.ratios(of_b, of_a), [], SPEEDS[field][1]
    for place in sorted(found, key=lambda place: (place[2], place[1], place[0])):
        (ratio, errors), (context, output, concurrency, depth) = found[place], place
        points.append(
            {"context": context, "depth": depth, "output": output, "concurrency": concurrency}
            | {"a": middles[0][place], "b": middles[1][place], "ratio": ratio}
            | {"noise": None if math.isinf(errors) else errors}
            | {"verdict": noise.verdict(ratio, errors, more_is_faster)}
        )
    said = f"B {noise.compared(list(found.values()), 'A', more_is_faster)}" if points else "no point in common"
    return {"message": said, "points": points}


def _as_decode(rate: Rate, field: str) -> Rate:
    """`rate` with the samples of `field`, one a repeat, where the noise model looks for its samples."""
    samples = getattr(rate, field)
    if field == "first_token_ms":  # one a request, repeat by repeat
        samples = [fmean(samples[i : i + rate.concurrency]) for i in range(0, len(samples), rate.concurrency)]
    return rate.model_copy(update={"decode_tok_s": samples})


def as_text(one: dict, *, forced: bool) -> str:
    """A record() for the terminal. forced: mark the ratios' headers."""
    mark = "B/A, FORCED" if forced else "B/A"
    sides = one["a"], one["b"]
    heads = [line for name, side in zip("AB", sides, strict=True) for line in _head(name, side)]
    lines = [
        ["", "A", "B", mark],
        ["greedy answers", *(side["accuracy"] or "no record" for side in sides), ""],
        ["log-probabilities", *map(_agreement, sides), ""],
        *_resolved(sides),
        ["KV capacity, tokens", *_cells(one["kv_capacity_tokens"], "{:,}".format)],
        *([f"{STARTS[start['what']]}, {start['cache']}, s", *_cells(start, plots.number)] for start in one["starts"]),
    ]
    blocks = ["\n".join(heads), f"{_aligned(lines, left=0)}\nStarts are too few to know their noise."]
    if one["not_shown"]:
        blocks.append(f"Decode rate, prefill rate, first token: not shown: {one['not_shown']}")
    for field, speed in one["speeds"].items():
        table = f"\n{_speed_table(speed['points'], mark)}" if speed["points"] else ""
        blocks.append(f"{SPEEDS[field][0]}: {speed['message']}{table}")
    only = [f"{count} only in {side.upper()}" for side, count in one["points_only_in"].items() if count]
    return "\n\n".join([*blocks, *([f"Points not compared: {', '.join(only)}"] if only else [])])


def _head(name: str, side: dict) -> list[str]:
    return [
        f"{name}: {side['profile']} of {side['file']}",
        f"   {side['model']} on {side['machine']}, {side['created'][:10]}, commit {side['commit']}",
        *(f"   {line}" for line in side["warnings"]),
        *(f"   FAILED in step {one['step']}: {' '.join(one['message'].split())}" for one in side["failures"]),
    ]


def _agreement(side: dict) -> str:
    """Log-probabilities against the reference of the side's own run."""
    one = side["agreement"]
    return f"{one['verdict']}, KL {one['decode']['kl']['value']:.2g} nats a token" if one else "no record"


def _resolved(sides: tuple[dict, dict]) -> list[list[str]]:
    found = [side["resolved"] for side in sides]
    readers = {
        "KV cache": lambda one: canonical_kv_dtype(one["kv_cache_dtype"], one["model_dtype"]),
        "not in layers": lambda one: ", ".join(one["kv_skip_layers"]) or "-",
        "attention backend": lambda one: ", ".join(one["attention_backends"]),
        "CUDA graphs": lambda one: one["cuda_graphs"],
    }
    return [[label, *(text_of(one) if one else NOT_READ for one in found), ""] for label, text_of in readers.items()]


def _cells(figures: dict, written: Callable[[float], str]) -> list[str]:
    values = ["-" if figures[side] is None else written(figures[side]) for side in ("a", "b")]
    return [*values, noise.times(figures["ratio"]) if figures["ratio"] else "-"]


def _speed_table(points: list[dict], mark: str) -> str:
    lines = [["context", "output", "requests", "A", "B", mark, ""]]
    for one in points:
        places = [f"{one['context']:,}", str(one["output"]), str(one["concurrency"])]
        ratio = noise.with_noise(one["ratio"], math.inf if one["noise"] is None else one["noise"])
        lines.append([*places, plots.number(one["a"]), plots.number(one["b"]), ratio, one["verdict"]])
    return _aligned(lines, left=6)


def _aligned(lines: list[list[str]], left: int) -> str:
    """Columns side by side; that of number `left` is set to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'<' if place == left else '>'}{width}}}" for place, width in enumerate(widths)]
    return "\n".join("  ".join(formats).format(*line).rstrip() for line in lines)
