"""YAML files that extend one another: profiles, and the suites of benches."""

import json
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from flashinfer_patches.errors import Problem

M = TypeVar("M", bound=BaseModel)


class Library(NamedTuple):
    """The YAML files of one sort that ship with the package.

    noun: what such a file is, and the kind of the Problems it raises. example: the name of one to start from.
    """

    noun: str
    folder: Path
    example: str

    @property
    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    @property
    def example_path(self) -> str:
        return f"{self.folder.name}/{self.example}.yaml"


def find(library: Library, name: str) -> Path:
    """The file of a shipped name, or `name` itself where it is a path ending in .yaml. Raises Problem."""
    if str(name).endswith(".yaml"):
        return Path(name)
    if name not in library.names:
        known = f"known: {', '.join(library.names)}; or give a path ending in .yaml"
        raise Problem(library.noun, f"no {library.noun} {name!r}", known)
    return library.folder / f"{name}.yaml"


def layers(library: Library, path: Path) -> list[tuple[Path, dict]]:
    """A file and all that it extends, the base first, each without `name` and `extends`. Raises Problem.

    `extends` is a shipped name, or a path relative to the file that holds it.
    """
    chain: list[tuple[Path, dict]] = []
    while path is not None:
        if path.resolve() in [earlier.resolve() for earlier, _ in chain]:
            remedy = f"let `extends` end at a {library.noun} without it"
            raise Problem(library.noun, f"{path.name} extends itself", remedy)
        content = _content(library, path)
        if content.pop("name", path.stem) != path.stem:
            remedy = f"take it out: a {library.noun} is named by its file"
            raise Problem(library.noun, f"{path.name}: `name` is not the file's", remedy)
        base = content.pop("extends", None)
        chain.append((path, content))
        path = None if base is None else path.parent / find(library, base)
    return chain[::-1]


def merged(base: dict, over: dict) -> dict:
    """`over` laid on `base`, map by map."""
    result = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both_maps else value
    return result


def validated(library: Library, path: Path, model: type[M], content: dict) -> M:
    """`content`, which is that of `path`, as a model; raises Problem that names the first wrong key."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise Problem(
            library.noun,
            f"{path.name}: {key}: {first['msg']} (got {str(first['input'])[:60]!r})",
            f"keys and types as in {library.example_path}",
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML in which no map has a key twice."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return node


def _content(library: Library, path: Path) -> dict:
    """A YAML file as a map of plain data; raises Problem."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        text = json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
        if b"\\u0000" in text:
            raise ValueError("a null character, which no word of a command can have")
    except FileNotFoundError as error:
        remedy = "give the path of an existing .yaml file"
        raise Problem(library.noun, f"no {library.noun} {path}", remedy) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Problem(library.noun, f"cannot read {path}: {' '.join(str(error).split())}", "fix the file") from error
    except (TypeError, ValueError, RecursionError) as error:  # dates, bytes, .nan, lone surrogates, a map in itself
        message = f"{path.name} holds what is no text, finite number, list or map: {' '.join(str(error).split())}"
        raise Problem(library.noun, message, "quote it, or take it out") from error
    if not isinstance(content, dict):
        raise Problem(library.noun, f"{path.name} is not a map of keys", f"start from {library.example_path}")
    return content
