"""vLLM's command-line arguments as plain data: parse and merge them, and write them as words."""

import json
import re

from flashinfer_patches.errors import Problem
from vllm_launch import guard
from vllm_launch.profile import Argument


def canonical(name: str) -> str:
    """Normalise a long option's name as vLLM's parser does: `_` is `-`, up to the dot of `hf-overrides.model_type`."""
    option, dot, key = name.partition(".")
    return option.replace("_", "-") + dot + key


def parse(words: list[str]) -> dict[str, Argument]:
    """Parse `--max-model-len 8192 --enforce-eager` as {"max-model-len": "8192", "enforce-eager": True}.

    Raises Problem("profile") for words without a flag before them, and for flags that guard refuses.
    """
    arguments: dict[str, Argument] = {}
    name = None
    for word in words:
        if re.match(r"-{1,2}[A-Za-z]", word):
            name, equals, value = word.partition("=")
            name = canonical(name.removeprefix("--")) if name.startswith("--") else name
            arguments[name] = value if equals else True
        elif name is None:
            raise Problem("profile", f"not a vLLM argument: {word!r}", "write vLLM's arguments as --name value")
        elif arguments[name] is True:
            arguments[name] = word
        else:
            earlier = arguments[name]
            arguments[name] = [*(earlier if isinstance(earlier, list) else [earlier]), word]
    guard.check_arguments(arguments)
    return arguments


def merge(*layers: dict[str, Argument]) -> dict[str, Argument]:
    """Merge arguments: later layers win, `--x` and `--no-x` replace each other, names become canonical."""
    merged: dict[str, Argument] = {}
    for layer in layers:
        for name, value in ((canonical(name), value) for name, value in layer.items()):
            merged.pop(name.removeprefix("no-") if name.startswith("no-") else f"no-{name}", None)
            merged[name] = value
    return merged


def words(arguments: dict[str, Argument]) -> list[str]:
    """Write arguments as words of a command line: True is a bare flag, False `--no-` and the flag, a map is JSON."""
    command = []
    for name, value in arguments.items():
        flag = name if name.startswith("-") else f"--{name}"
        if value is True:
            command.append(flag)
        elif value is False:
            command.append(f"--no-{name}")
        elif isinstance(value, dict):
            command += [flag, json.dumps(value, separators=(",", ":"))]
        elif isinstance(value, list):
            command += [flag, *value]
        else:
            command += [flag, str(value)]
    return command
