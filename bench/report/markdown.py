"""Pieces of Markdown: tables, lists, code, and plain text made safe for them."""

import re
from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; headers are plain text, cells are Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in [[text(header) for header in headers], *rows]]
    return "\n".join([lines[0], f"|{'---|' * len(headers)}", *lines[1:]])


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def text(plain: str) -> str:
    """Plain text as Markdown, on one line, fit for a table cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(plain.split()))


def verdict(plain: str) -> str:
    """Plain text as Markdown, bold where it reports a failure."""
    return f"**{text(plain)}**" if plain.startswith("FAILED") else text(plain)


def code(content: str) -> str:
    """Any text as one line of code; line ends and the like as escapes."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in content)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))  # more than stand together anywhere in it
    return f"{fence} {line} {fence}"
