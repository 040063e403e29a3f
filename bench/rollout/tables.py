"""Tables of a rollout result: gates, cells, incidents, and what moves FPS."""

from bench.report import markdown as md
from bench.report.numbers import number
from bench.rollout.gates import no_speed, written
from bench.rollout.process import MODES
from bench.rollout.result import GateRow, RolloutResult, RolloutRow

GOAL_FPS = 100
SOFTWARE = ("torch", "torchao", "triton")
PARTS = {"attention": ("attention",), "MLP": ("mlp",), "decoder": ("decoder",), "cache": ("quantise", "dequantise")}


def measured(result: RolloutResult) -> list[RolloutRow]:
    return [row for row in result.rows if not row.error]


def verdict(row: GateRow | RolloutRow) -> str:
    return f"**{row.verdict}**" if row.verdict == "failed" else row.verdict


def gate_table(rows: list[GateRow]) -> str:
    lines = [
        [row.gate, md.text(row.cell), verdict(row), md.text("; ".join(map(criterion, row.criteria)))] for row in rows
    ]
    return md.table(["gate", "cell", "verdict", "criteria"], lines)


def criterion(each) -> str:
    mark = "" if each.verdict == "passed" else f"{each.verdict} "
    return f"{each.name}: {mark}{each.detail}"


def cell_table(result: RolloutResult) -> str:
    headers = ["cell", "linears", "cache", *(f"drop, {mode}, dB" for mode in MODES)]
    headers += ["SSIM", "PSNR to BF16, dB", "FPS", "cache, KiB", "of BF16", "quality"]
    return md.table(headers, [cell_line(row) for row in measured(result)])


def cell_line(row: RolloutRow) -> list[str]:
    drops = [row.quality[mode].drop for mode in MODES]
    running = row.quality["free-running"]
    alike = number(running.alike_psnr.value) if running.alike_psnr else "-"
    cells = [md.text(row.cell), md.text(linears(row)), md.text(cache(row))]
    cells += [written(drop).removesuffix(" dB") if drop else "-" for drop in drops]
    cells += [f"{running.ssim.value:.3f}", alike, fps(row), f"{row.memory.window_bytes / 1024:,.0f}"]
    return [*cells, f"{row.memory.window_bytes / row.memory.bf16_bytes:.2f}", verdict(row)]


def linears(row: RolloutRow) -> str:
    if row.transform is None:
        return "BF16"
    return f"{row.transform.format}, {row.transform.kernel}, {row.transform.layers} layers"


def cache(row: RolloutRow) -> str:
    """Formats of K and V, and in how many layers."""
    sides = []
    for side in ("k", "v"):
        formats = [each for each in row.resolved.get(f"{side}_formats") or [] if each]
        late = row.settings.get("kv_late_layers") or len(formats)
        names = " and ".join(dict.fromkeys(formats[-late:])) if formats else ""
        sides += [f"{side.upper()} {names} in {min(late, len(formats))}"] if names else []
    return ", ".join(sides) or "BF16"


def fps(row: RolloutRow) -> str:
    if reason := no_speed(row):
        return f"not decidable {reason}"
    return number(row.times.fps_total) if row.times else "all frames cold"


def incident_blocks(result: RolloutResult) -> list[str]:
    """Each incident: what failed, and a line for each step that was run."""
    blocks = []
    for incident in result.incidents:
        source = result.provenance
        software = [f"{name} {source.versions[name]}" for name in SOFTWARE if name in source.versions]
        outcome = f"It holds with {incident.outcome}" if incident.outcome else "No step helped"
        blocks.append(f"## Incident: gate {incident.gate}, {md.text(incident.cell)}")
        blocks.append(md.text(f"{', '.join([source.machine.name, *software])}. {incident.issue}. {outcome}."))
        lines = [[md.text(incident.cell), *incident_cells(result, incident.cell), "**failed**", "-"]]
        for step in incident.steps:
            criteria = "; ".join(criterion(each) for each in step.criteria if each.verdict != "passed") or "-"
            lines.append([md.text(step.cell), *incident_cells(result, step.cell), verdict(step), md.text(criteria)])
        headers = ["run", "settings", "transform", "drops, dB", "FPS", "kernels", "verdict", "issues"]
        blocks.append(md.table(headers, lines))
    return blocks


def incident_cells(result: RolloutResult, cell: str) -> list[str]:
    row = result.row(cell)
    if row.error:
        return [md.text(changed_settings(result, row)), "-", "-", "-", md.text(row.error)]
    drops = [f"{row.quality[mode].drop.value:.3f}" for mode in MODES if row.quality[mode].drop]
    kernels = "-"
    if row.profile:
        names = ", ".join(f"{each.name} {each.us / 1e3:.2f} ms" for each in row.profile.kernels[:3])
        kernels = f"{names}; {row.profile.copies} copies"
    texts = (changed_settings(result, row), f"{linears(row)}; {cache(row)}", ", ".join(drops), fps(row), kernels)
    return [md.text(text) for text in texts]


def changed_settings(result: RolloutResult, row: RolloutRow) -> str:
    """The settings in which a cell differs from the reference."""
    base = result.row(result.sweep.reference).settings
    return " ".join(f"{name}={value}" for name, value in row.settings.items() if base.get(name) != value)


def part_table(result: RolloutResult) -> str:
    """Each part's share of a frame, and the FPS if it took no time."""
    lines = []
    for row in measured(result):
        if row.times and not no_speed(row):
            cells = []
            for names in PARTS.values():
                share = part_share(row, names)
                faster = row.times.fps_total / (1 - share)
                cells.append(f"{share:.0%}, {number(faster)}{' *' if faster >= GOAL_FPS > row.times.fps_total else ''}")
            lines.append([md.text(row.cell), number(row.times.fps_total), *cells])
    return md.table(["cell", "FPS", *(f"{name}: share, FPS without" for name in PARTS)], lines)


def part_share(row: RolloutRow, names: tuple[str, ...]) -> float:
    """A part's share of a frame, over both sampling steps."""
    ms = sum(value for name, value in row.times.parts_ms.items() if name.split("_step")[0] in names)
    return min(ms / row.times.parts_total_ms, 0.999)


def numerics_table(result: RolloutResult) -> str:
    lines = []
    for row in measured(result):
        for side, counts in row.numerics.items():
            if counts.at_limit or counts.clamped or counts.scale:
                scale = " / ".join(f"{value:.3g}" for value in counts.scale) if counts.scale else "-"
                figures = (counts.at_limit, counts.clamped, counts.nan + counts.inf)
                lines.append([md.text(row.cell), side.upper(), *(f"{value:,}" for value in figures), scale])
    headers = ["cell", "side", "at the limit", "clamped", "NaN or infinite", "scale: least / mean / largest"]
    return md.table(headers, lines)


def linear_table(result: RolloutResult) -> str:
    lines = [
        [
            f"{row.shape} ({row.inputs} x {row.outputs})",
            str(row.tokens),
            row.kernel,
            f"{row.ms:.3f}" if row.ms else md.text(row.error or "-"),
            f"{row.sqnr:.1f}" if row.sqnr else "-",
        ]
        for row in result.linears
    ]
    return md.table(["linear layer", "tokens", "kernel", "ms", "SQNR, dB"], lines)
