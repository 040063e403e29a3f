"""How the tests ask for an error."""

import pytest

from flashinfer_patches.errors import EXIT_CODES, Problem


def refused(kind, action, *arguments):
    """The one error of an action: its kind, and a message and remedy of one line each."""
    with pytest.raises(Problem) as caught:
        action(*arguments)
    error = caught.value
    assert error.kind == kind and error.exit_code == EXIT_CODES[kind] and error.remedy
    return error
