"""Refusals, for tests of this room."""

import pytest

from flashinfer_patches.errors import Problem


def refused(call, *arguments, **options) -> Problem:
    """The Problem that a call raises: one line, with a remedy."""
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.remedy and "\n" not in caught.value.message
    return caught.value
