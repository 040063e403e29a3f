"""Assert that an action raises a Problem."""

import pytest

from flashinfer_patches.errors import EXIT_CODES, Problem


def refused(kind, action, *arguments):
    """Run an action that must raise Problem(kind), and return that."""
    with pytest.raises(Problem) as caught:
        action(*arguments)
    error = caught.value
    assert error.kind == kind and error.exit_code == EXIT_CODES[kind] and error.remedy
    return error
