"""docs/exit-codes.md and the help of the commands list every exit code."""

import re

import pytest
from click.testing import CliRunner

from flashinfer_patches.errors import ENVIRONMENT, EXIT_CODES, FAILED, GATE, USAGE, Problem
from fp8_sinks.cli import main
from kernels_tests.vllm_launch.machines import REPO

PAGE = (REPO / "docs" / "exit-codes.md").read_text()


def test_the_page_lists_every_kind_with_its_code():
    rows = re.findall(r"^\| (\w+) \| (\d) \| .+ \|$", PAGE, re.MULTILINE)
    assert {kind: int(code) for kind, code in rows} == EXIT_CODES and len(rows) == len(EXIT_CODES)


def test_the_page_and_the_help_list_every_code():
    listed = CliRunner().invoke(main, ["--help"]).stdout
    for code in (0, FAILED, USAGE, GATE, ENVIRONMENT):
        assert re.search(rf"^\| {code} \| ", PAGE, re.MULTILINE) and f" {code} " in listed.split("Exit codes:")[1]


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_a_problem_exits_with_the_code_of_its_kind(kind, code):
    assert Problem(kind, "message", "remedy").exit_code == code
