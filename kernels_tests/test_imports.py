"""The packages import only what pyproject.toml declares; `make lint` checks what they import of each other."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
# Provided by the environment, and imported only by the commands that need them.
ENVIRONMENT = {"cuda", "flashinfer", "torch", "transformers", "triton", "vllm"}


def imported(package):
    """Yield the top-level names that the modules of a package import, lazily or not."""
    for path in (REPO / package.replace(".", "/")).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module.split(".")[0]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_declared():
    packages = PROJECT["tool"]["setuptools"]["packages"]
    ours = {package.split(".")[0] for package in packages}
    names = {name for package in packages for name in imported(package)} - ours - ENVIRONMENT - sys.stdlib_module_names
    lines = sum(PROJECT["project"]["optional-dependencies"].values(), PROJECT["project"]["dependencies"])
    declared = {plain(re.match(r"[\w.-]+", line)[0]) for line in lines}
    distributions = packages_distributions()
    providers = {name: {plain(provider) for provider in distributions.get(name, [name])} for name in names}
    undeclared = {name for name in names if not declared & providers[name]}
    assert names and undeclared == set()
