"""Render the figures of metrics.json into the model card, between its two markers."""

import json
from pathlib import Path

from corpus import write

START, END = "<!-- figures: begin (written by card.py) -->", "<!-- figures: end -->"


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """Format a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def inline(text: str) -> str:
    """Format text as code in a table cell, with a sign for each line end."""
    return "`" + text.replace("\n", "⏎").replace("|", "\\|").replace("`", "'") + "`"


def figures(metrics: dict) -> str:
    """Format the generated part of the card as Markdown."""
    training, heldout = metrics["training"], metrics["heldout"]
    facts = [
        ("parameters", f"{metrics['parameters']:,}"),
        ("trained on", training["device"]),
        (
            "training",
            f"{training['seconds']:.0f} s, {training['steps']:,} steps, {training['tokens']:,} tokens, "
            f"{training['tokens'] / training['corpus_tokens']:.0f} times the corpus",
        ),
        (
            "corpus",
            f"{training['corpus_tokens']:,} tokens; Python {training['sources']['python']}, WordNet package "
            f"{training['sources']['wordnet']}, countryinfo {training['sources']['countryinfo']}",
        ),
        ("held-out loss", f"{heldout['loss']:.3f} nats a token, {heldout['tokens']:,} tokens"),
        (
            "sinks",
            "; ".join(f"layer {index}: {min(row):.1f} to {max(row):.1f}" for index, row in enumerate(metrics["sinks"])),
        ),
        ("answer to llama-benchy's coherence prompt", inline(metrics["coherence"])),
    ]
    sources = [(name, f"{row['loss']:.3f}", f"{row['tokens']:,}") for name, row in heldout["by_source"].items()]
    positions = [(name, f"{loss:.3f}") for name, loss in heldout["by_position"].items()]
    answers = [
        (
            inline(prompt),
            inline(row["text"]),
            row["distinct"],
            f"{row['margin']:.2f}",
            f"{metrics['greedy_fp32'][prompt]['margin']:.2f}",
            "same" if metrics["greedy_fp32"][prompt]["ids"] == row["ids"] else "differs",
        )
        for prompt, row in metrics["greedy"].items()
    ]
    changes = [
        (
            name,
            f"{row['mean_abs_delta_logp']:.3f}",
            f"{row['p99_abs_delta_logp']:.3f}",
            f"{row['loss']:.3f}",
            f"{len(row['greedy_changed'])} of {len(metrics['greedy'])}",
        )
        for name, row in metrics["changes"].items()
    ]
    measured = metrics["measured_with"]
    return "\n\n".join(
        [
            table(("", ""), facts),
            "Held-out loss by source:",
            table(("source", "nats a token", "tokens"), sources),
            "Held-out loss by tokens of context:",
            table(("position", "nats a token"), positions),
            "Greedy answers, 32 tokens, BF16. Margin: the least difference between the two highest logits.",
            table(("prompt", "answer", "distinct tokens", "margin", "margin in FP32", "FP32 answer"), answers),
            "What wrong sinks and FP8 rounding do, against the same model in BF16 on the held-out text:",
            table(("change", "mean abs. delta log p", "p99", "loss", "greedy answers changed"), changes),
            f"Measured on {measured['device']} with torch {measured['torch']} and transformers "
            f"{measured['transformers']}, eager attention.",
        ]
    )


def render_card(folder: Path) -> None:
    """Write the figures of folder/metrics.json between the markers of folder/README.md."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    before, after = card.split(START)
    write(folder / "README.md", f"{before}{START}\n\n{figures(metrics)}\n\n{END}{after.split(END)[1]}")
