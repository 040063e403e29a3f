"""Where a kernel decodes faster with an FP8 than with a BF16 cache: ratios of a result's rows, and a sentence."""

from typing import Literal, NamedTuple

from bench.kernels.result import KernelRow, KernelsResult

BASE, QUANTISED = "bf16", "e4m3"
MOST_NAMED = 6  # shapes that a sentence names
Verdict = Literal["faster", "slower", "equal"]


class Gain(NamedTuple):
    """One kernel at one shape with both caches. value: BF16's time over FP8's; verdict: what FP8 is."""

    base: KernelRow
    row: KernelRow

    @property
    def value(self) -> float:
        return self.base.time_us / self.row.time_us

    @property
    def verdict(self) -> Verdict:
        return verdict(self.row, self.base)


def verdict(row: KernelRow, base: KernelRow) -> Verdict:
    """What a row is against another; equal where the samples of the two overlap."""
    if max(row.samples_us) < min(base.samples_us):
        return "faster"
    return "slower" if min(row.samples_us) > max(base.samples_us) else "equal"


def gains(result: KernelsResult, kernel: str) -> list[Gain]:
    """A kernel's gains where batch and context say everything and it has times with both, in the result's order."""
    rows = [row for row in result.rows if row.kernel == kernel and row.error is None and row.shape.plain]
    base = {row.shape: row for row in rows if row.kv_format == BASE}
    return [Gain(base[row.shape], row) for row in rows if row.kv_format == QUANTISED and row.shape in base]


def compared(result: KernelsResult) -> list[str]:
    """The kernels that have gains, in the result's order."""
    return [name for name in dict.fromkeys(row.kernel for row in result.rows) if gains(result, name)]


def pays_from(found: list[Gain]) -> dict[int, int | None]:
    """For each batch the shortest measured context from which on FP8 is faster at every one; None if at none."""
    starts: dict[int, int | None] = {}
    for gain in sorted(found, key=lambda gain: (gain.row.batch, -gain.row.context)):
        longest = gain.row.batch not in starts
        unbroken = longest or starts[gain.row.batch] == _next_longer(found, gain)
        if gain.verdict == "faster" and unbroken:
            starts[gain.row.batch] = gain.row.context
        elif longest:
            starts[gain.row.batch] = None
    return starts


def message(result: KernelsResult, kernel: str) -> str:
    """Where FP8 through this kernel is slower than BF16, from which context it pays, and its error."""
    found = gains(result, kernel)
    slower = [
        f"{gain.row.shape.words} ({gain.row.time_us:.1f} us against {gain.base.time_us:.1f})"
        for gain in found
        if gain.verdict == "slower"
    ]
    few = f"at {_listed(slower)}" if slower else "at no measured shape"
    parts = [f"slower than BF16 {few if len(slower) <= MOST_NAMED else _many(found)}"]
    parts += _pays_parts(found)
    if faster := [gain.value for gain in found if gain.verdict == "faster"]:
        parts.append(f"at best {max(faster):.2f}x as fast")
    worst = [max(getattr(gain, side).rel_l2 for gain in found) for side in ("row", "base")]
    parts.append(f"relL2 at most {worst[0]:.1e}, with BF16 {worst[1]:.1e}")
    return f"FP8 through {kernel}: {'; '.join(parts)}"


def short(result: KernelsResult, kernel: str) -> str:
    """The same without times and contexts, for a title."""
    found = gains(result, kernel)
    slower = [gain.row.shape.words for gain in found if gain.verdict == "slower"]
    few = f"at {_listed(slower)}" if 0 < len(slower) < 4 else _many(found)
    best = max(gain.value for gain in found)
    return f"FP8 through {kernel}: slower than BF16 {few}; at best {best:.2f}x as fast"


def _many(found: list[Gain]) -> str:
    return f"at {sum(gain.verdict == 'slower' for gain in found)} of {len(found)} shapes"


def _pays_parts(found: list[Gain]) -> list[str]:
    """Batches that pay from the same context, in one part each."""
    starts = pays_from(found)
    shortest = {batch: min(gain.row.context for gain in found if gain.row.batch == batch) for batch in starts}
    everywhere = [batch for batch, start in starts.items() if start == shortest[batch]]
    nowhere = [batch for batch, start in starts.items() if start is None]
    parts = [
        f"pays from a context of {start:,} tokens with {_requests([batch])}"
        for batch, start in starts.items()
        if start is not None and batch not in everywhere
    ]
    parts += [f"pays at every measured context with {_requests(everywhere)}"] if everywhere else []
    parts += [f"does not pay at the longest measured context with {_requests(nowhere)}"] if nowhere else []
    return parts


def _next_longer(found: list[Gain], gain: Gain) -> int:
    longer = [one.row.context for one in found if one.row.batch == gain.row.batch]
    return min(context for context in longer if context > gain.row.context)


def _requests(batches: list[int]) -> str:
    return f"{_listed([str(batch) for batch in batches])} request{'' if batches == [1] else 's'} at once"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
