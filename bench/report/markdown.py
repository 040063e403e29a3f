"""Pieces of Markdown: tables, code, and plain text made safe for them."""

import html
import re
import shlex


def table(headers: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; headers are plain text, cells are Markdown."""
    rows = [[text(header) for header in headers], ["---"] * len(headers), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def details(summary: str, blocks: list[str]) -> str:
    """Blocks that open with a click on their summary."""
    return "\n\n".join([f"<details><summary>{html.escape(summary)}</summary>", *blocks, "</details>"])


def text(plain: str) -> str:
    """Plain text as Markdown, on one line, fit for a table cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(plain.split()))


def code(content: str) -> str:
    """Any text as one line of code; line ends and the like as escapes."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in content)
    fence = _fence(line, 1)
    return f"{fence} {line} {fence}"


def cell(content: str) -> str:
    """Any text as code in a table."""
    return code(content).replace("|", "\\|")


def block(content: str, language: str = "text") -> str:
    """Any text as a code block."""
    fence = _fence(content, 3)
    return f"{fence}{language}\n{content}\n{fence}"


def _fence(text: str, least: int) -> str:
    """More backticks than stand together anywhere in the text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def shell(words: list[str]) -> str:
    """Words as the shell takes them, a new line before each option or variable; $REPO and the like stay."""
    quoted = [word if re.fullmatch(r"[\w@%+=:,./~$-]+", word) else shlex.quote(word) for word in words]
    breaks = [" \\\n  " if re.match(r"--|[A-Z][A-Z0-9_]*=", word) else " " for word in words]
    return "".join(gap + word for gap, word in zip(breaks, quoted, strict=True)).lstrip(" \\\n")
