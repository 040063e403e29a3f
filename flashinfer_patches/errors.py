"""Every way a patch or cache command can fail: one message, one remedy, one exit code.

Exit codes (also in the README; disjoint from those of vllm_launch.errors):

    40 target     41 version    42 edited     43 superseded  44 git
    45 write      46 lock       47 series     48 cache       49 fetch
    50 build
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

EXIT_CODES = {
    "target": 40,  # no FlashInfer there, or in a folder that others share
    "version": 41,  # a FlashInfer release without a series
    "edited": 42,  # a file is neither the release's nor ours, or FlashInfer is half patched
    "superseded": 43,  # upstream has the change already
    "git": 44,  # git is missing
    "write": 45,  # read-only, or no space
    "lock": 46,  # somebody else is at it
    "series": 47,  # the series does not do what its manifest says
    "cache": 48,  # not a kernel cache of ours, or one that prebuilt kernels would hide
    "fetch": 49,  # the wheel cannot be had, or is not the one that we know
    "build": 50,  # kernels cannot be compiled here
}


class PatchError(click.ClickException):
    """A failure a user can do something about; click prints it and exits with its code.

    kind: a key of EXIT_CODES. what: one line, with what was got and what was expected.
    remedy: one line, what to do now.
    """

    def __init__(self, kind: str, what: str, remedy: str):
        super().__init__(what)
        self.kind = kind
        self.remedy = remedy
        self.exit_code = EXIT_CODES[kind]

    def format_message(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Any system error of the block as PatchError("write") that names the file, or else `place`."""
    try:
        yield
    except OSError as error:
        raise PatchError(
            "write",
            f"{error.filename or place} cannot be written: {error.strerror}",
            "run this as the owner of that folder, with space on its disk; what was interrupted is finished by the"
            " next run",
        ) from error
