"""Recorded logs of servers, and what changes them."""

from pathlib import Path

LOGS = Path(__file__).parent / "logs"
# The settings of our plugin that a server without it has.
STOCK = {"decoder": "stock", "prefill": None, "cache_writer": None, "kv_format": None, "kv_scales": None}


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


def without(text: str, *needles: str) -> str:
    """Remove every line that contains one of `needles`; each must occur."""
    assert all(needle in text for needle in needles)
    return "\n".join(line for line in text.splitlines() if not any(needle in line for needle in needles))


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)
