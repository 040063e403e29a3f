"""The example imports lowp of this project, and no other room."""

import ast
import sys

from kernels_tests.examples.world_model.conftest import EXAMPLE

ALLOWED = {"world", "lowp", "torch", "yaml", "PIL", "safetensors"}


def test_the_example_imports_lowp_alone():
    names = set()
    for path in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    assert names - sys.stdlib_module_names == ALLOWED
