"""Pieces of Markdown: tables, lists, code, and plain text made safe for them."""

import re
from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; headers are plain text, cells are Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in [[text(header) for header in headers], *rows]]
    return "\n".join([lines[0], f"|{'---|' * len(headers)}", *lines[1:]])


def listing(title: str, lines: Sequence[str]) -> list[str]:
    """A block with a title and a bullet a line; no block without lines."""
    bullets = "\n".join(f"- {line}" for line in lines)
    return [f"{title}\n\n{bullets}"] if lines else []


def text(plain: str) -> str:
    """Plain text as Markdown, on one line, fit for a table cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(plain.split()))


def verdict(plain: str) -> str:
    """Plain text as Markdown, bold where it reports a failure."""
    return f"**{text(plain)}**" if plain.startswith("FAILED") else text(plain)
