"""Pieces of Markdown: tables, lists, code, and plain text made safe for them."""

import re
from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; headers are plain text, cells are Markdown."""
    lines = [[text(header) for header in headers], ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    fence = _fence(line, 1)
    return f"{fence} {line} {fence}"


def block(content: str) -> str:
    """Any text as a code block."""
    fence = _fence(content, 3)
    return f"{fence}text\n{content}\n{fence}"


def _fence(content: str, shortest: int) -> str:
    """More backticks than stand together anywhere in the content."""
    return "`" * max(shortest, 1 + max(map(len, re.findall("`+", content)), default=0))
