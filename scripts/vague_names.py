"""`python scripts/vague_names.py [FILE...]`: list names that do not say what they name; fail above LIMIT of all names.

Counts a name once in each scope that binds it: function, class, argument, variable, alias. Without files: all tracked
Python.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LIMIT = 0.01
# A name is vague if it contains one of VAGUE_WORDS, or if it is one of VAGUE_NAMES.
VAGUE_WORDS = {"one", "ones", "found", "what", "place", "places", "said", "told", "asked", "begin", "begun", "trouble"}
VAGUE_WORDS |= {"look", "thing", "things", "wanted", "twice", "somebody", "everything", "stuff"}
VAGUE_NAMES = {
    "kept",
    "made",
    "done",
    "got",
    "given",
    "both",
    "own",
    "other",
    "others",
    "rest",
    "whole",
    "some",
    "many",
}
VAGUE_NAMES |= {"here", "there", "now", "again", "short", "aside", "of", "at", "by", "to", "say", "much", "more"}
SCOPES = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each name that a scope binds, once, with its line."""
    for scope in ast.walk(tree):
        if isinstance(scope, SCOPES):
            lines: dict[str, int] = {}
            for node in nodes_in(scope):
                if name := bound_name(node):
                    lines.setdefault(name, node.lineno)
            yield from lines.items()


def nodes_in(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a scope, nested scopes included, but not what these contain."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, SCOPES):
            yield from nodes_in(node)


def bound_name(node: ast.AST) -> str | None:
    """Return the name that a node binds; None for other nodes, `self` and `cls`."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Name(id=name, ctx=ast.Store()) | ast.ExceptHandler(name=name) | ast.alias(asname=name):
            return name
        case ast.MatchAs(name=name) | ast.MatchStar(name=name):
            return name
        case ast.arg(arg=name) if name not in ("self", "cls"):
            return name
    return None


def is_vague(name: str) -> bool:
    """Whether a name, in snake_case or CamelCase, says nothing."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
    return bool(VAGUE_WORDS.intersection(words)) or "_".join(words) in VAGUE_NAMES


def tracked_files() -> list[str]:
    """Return the Python files that git tracks."""
    command = ["git", "ls-files", "--deduplicate", "*.py"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def main(paths: list[str]) -> int:
    """Print each vague name with its file and line, and the share of all names; return the exit code."""
    total, vague = 0, Counter()
    for path in paths or tracked_files():
        for name, line in names(ast.parse(Path(path).read_text(encoding="utf-8"))):
            total += 1
            if is_vague(name):
                vague[name] += 1
                print(f"{path}:{line}: {name}")
    share = vague.total() / max(1, total)
    frequent = ", ".join(f"{name} {count}" for name, count in vague.most_common(8))
    print(f"{vague.total()} of {total} names are vague: {share:.2%} ({frequent})", file=sys.stderr)
    return int(share > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
