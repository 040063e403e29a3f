"""vLLM's command-line arguments as plain data: merge a profile's with a user's, and write them out."""

import json
import re

from vllm_launch.errors import Problem
from vllm_launch.profile import Argument

# The launcher sets these itself, or they would defeat what it guards.
OWNED = {
    "model": "--model",
    "served-model-name": "nothing: the name is the model's",
    "host": "--host",
    "port": "--port",
    "api-key": "the environment variable VLLM_API_KEY",
    "trust-remote-code": "a model that needs no code of its own",
    "uds": "--host and --port",
}


def parse(words: list[str]) -> dict[str, Argument]:
    """`--max-model-len 8192 --enforce-eager` -> {"max-model-len": "8192", "enforce-eager": True}.

    Raises Problem("profile") for words that belong to no flag, and for flags that the launcher owns.
    """
    arguments: dict[str, Argument] = {}
    name = None
    for word in words:
        if re.match(r"-{1,2}[A-Za-z]", word):
            name, equals, value = word.partition("=")
            name = name.lstrip("-").replace("_", "-") if name.startswith("--") else name
            if name in OWNED:
                raise Problem("profile", f"--{name} belongs to the launcher", f"use {OWNED[name]}")
            arguments[name] = value if equals else True
        elif name is None:
            raise Problem("profile", f"not a vLLM argument: {word!r}", "write vLLM's arguments as --name value")
        elif arguments[name] is True:
            arguments[name] = word
        else:
            earlier = arguments[name]
            arguments[name] = [*(earlier if isinstance(earlier, list) else [earlier]), word]
    return arguments


def merge(*layers: dict[str, Argument]) -> dict[str, Argument]:
    """Later layers win; `--x` and `--no-x` replace one another."""
    merged: dict[str, Argument] = {}
    for layer in layers:
        for name, value in layer.items():
            merged.pop(name.removeprefix("no-") if name.startswith("no-") else f"no-{name}", None)
            merged[name] = value
    return merged


def words(arguments: dict[str, Argument]) -> list[str]:
    """The words of a command line: True is a bare flag, False its `--no-` twin, a map is JSON."""
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
