"""What the packages import is what pyproject.toml declares."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
# Of the environment that is served, patched or compiled for; which of them is there decides what works.
ENVIRONMENT = {"cuda", "flashinfer", "torch", "transformers", "triton", "vllm"}


def imported(package):
    """The top-level names that the modules of a package import, wherever in a module."""
    for path in (REPO / package.replace(".", "/")).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module.split(".")[0]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared():
    packages = PROJECT["tool"]["setuptools"]["packages"]
    ours = {package.split(".")[0] for package in packages}
    names = {name for package in packages for name in imported(package)} - ours - ENVIRONMENT - sys.stdlib_module_names
    declared = {plain(re.match(r"[\w.-]+", line)[0]) for line in PROJECT["project"]["dependencies"]}
    distributions = packages_distributions()
    undeclared = {name for name in names if not declared & {plain(of) for of in distributions.get(name, [name])}}
    assert names and undeclared == set()
