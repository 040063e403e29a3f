"""`python scripts/vague_names.py [FILE...]`: names that do not say what they name; fails above LIMIT of all names.

Counts each definition, argument and assigned name of a function or module once. Without files: all tracked Python.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LIMIT = 0.01
# A name with one of these words in it is vague; a name that is one of ALONE is.
ANYWHERE = {"one", "ones", "found", "what", "place", "places", "said", "begin", "begun", "asked", "trouble", "look"}
ANYWHERE |= {"told", "thing", "things", "wanted", "twice", "somebody", "everything", "stuff"}
ALONE = {"kept", "made", "done", "got", "given", "both", "own", "other", "others", "rest", "whole", "some", "many"}
ALONE |= {"here", "there", "now", "again", "short", "aside", "of", "at", "by", "to", "told", "say", "much", "more"}


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each name that a scope binds, once, with its line."""
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if not isinstance(scope, ast.Module | ast.Lambda):
            yield scope.name, scope.lineno
        bound: dict[str, int] = {}
        for node in _own_nodes(scope):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.setdefault(node.id, node.lineno)
            elif isinstance(node, ast.arg) and node.arg not in ("self", "cls"):
                bound.setdefault(node.arg, node.lineno)
        yield from bound.items()


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the scopes inside it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield node
            yield from _own_nodes(node)


def is_vague(name: str) -> bool:
    """Whether a name, in any spelling, says nothing."""
    words = name.lower().strip("_").split("_")
    return bool(ANYWHERE & set(words)) or "_".join(words) in ALONE


def main(paths: list[str]) -> int:
    paths = (
        paths or subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    )
    total, vague = 0, []
    for path in paths:
        for name, line in names(ast.parse(Path(path).read_text(encoding="utf-8"))):
            total += 1
            if is_vague(name):
                vague.append((path, line, name))
    for path, line, name in vague:
        print(f"{path}:{line}: {name}")
    words = ", ".join(f"{name} {count}" for name, count in Counter(name for *_, name in vague).most_common(8))
    print(f"{len(vague)} of {total} names are vague: {len(vague) / max(1, total):.2%} ({words})", file=sys.stderr)
    return len(vague) > LIMIT * total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
