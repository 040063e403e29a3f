"""Select the Linear layers of a model by their paths."""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

# Components of a path that name a category; "mlp" wins over "attn" (blocks.0.mlp.out).
CATEGORIES = {
    "mlp": frozenset({"mlp", "fc1", "fc2"}),
    "attn": frozenset({"qkv", "to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj", "out", "out_proj"}),
}
SCOPES = (*CATEGORIES, "all")
FINAL_PROJECTION = re.compile(r"(^|\.)final.*proj$")  # stays BF16 with 4 bits
BLOCK = re.compile(r"(?P<stack>^|.*?\.)blocks\.(?P<index>\d+)(\.|$)")


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the Linear layers of `model` by path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def category(path: str) -> str:
    """Return the category of a layer: "mlp", "attn" or "other"."""
    components = set(path.split("."))
    return next((name for name, words in CATEGORIES.items() if components & words), "other")


def select(
    layers: Mapping[str, nn.Linear],
    module_paths: Iterable[str],
    scope: str,
    late_layers: int,
    skip: Sequence[str],
    bits: int,
) -> list[str]:
    """Return the paths of the layers to convert; the arguments are those of `apply_mx`.

    Raises ValueError if none is left, or for an argument that matches nothing in the model.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is unknown; expected one of {', '.join(SCOPES)}")
    if isinstance(skip, str):
        raise TypeError(f"skip is the text {skip!r}; expected a sequence of names, as in ({skip!r},)")
    late = late_blocks(module_paths, late_layers) if late_layers else None
    known = {component for path in layers for component in path.split(".")}
    if unknown := set(skip) - known:
        raise ValueError(f"skip has {', '.join(sorted(unknown))}, of no Linear layer; the paths are {shorten(layers)}")
    names = [
        path
        for path in layers
        if scope in ("all", category(path))
        and not set(path.split(".")) & set(skip)
        and not (bits == 4 and FINAL_PROJECTION.search(path))
        and (late is None or block_of(path) in late)
    ]
    if not names:
        raise ValueError(
            f"no layer to convert: scope={scope!r}, bits={bits}, late_layers={late_layers}, skip={tuple(skip)!r} leave "
            f"none of {len(layers)} Linear layers ({shorten(layers)})"
        )
    return names


def block_of(path: str) -> tuple[str, int] | None:
    """Return (path of the list's owner, index) of the outermost `blocks` list that holds `path`, or None."""
    match = BLOCK.match(path)
    return (match["stack"], int(match["index"])) if match else None


def late_blocks(module_paths: Iterable[str], late_layers: int) -> set[tuple[str, int]]:
    """Return the last `late_layers` blocks of each `blocks` list."""
    blocks = {block for path in module_paths if (block := block_of(path))}
    if not blocks:
        raise ValueError(f"late_layers={late_layers}, but no path of the model has blocks.N; expected late_layers=0")
    counts = {stack: 1 + max(i for owner, i in blocks if owner == stack) for stack, _ in blocks}
    if not 0 < late_layers <= min(counts.values()):
        raise ValueError(f"late_layers={late_layers}; expected 0 (all) to {min(counts.values())}, the number of blocks")
    return {(stack, index) for stack, index in blocks if index >= counts[stack] - late_layers}


def shorten(paths: Iterable[str], most: int = 6) -> str:
    """Join paths, at most `most` of them."""
    paths = list(paths)
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")
