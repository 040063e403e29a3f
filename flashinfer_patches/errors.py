"""Every way a command can fail: one message, one remedy, and one of three exit codes (docs/exit-codes.md)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

FAILED, USAGE, GATE, ENVIRONMENT = 1, 2, 3, 4
EXIT_CODES = {
    # The request cannot be carried out as written.
    "profile": USAGE,  # a profile, or an argument in it
    "suite": USAGE,  # a suite of a bench
    "file": USAGE,  # a file or folder that was named is missing, unreadable or of another run
    "compare": USAGE,  # two results differ in more than the KV cache
    # This machine or this environment lacks something.
    "model": ENVIRONMENT,  # no such model, one without sinks, or one whose bytes are not counted
    "address": ENVIRONMENT,  # port taken, or exposed without a key
    "memory": ENVIRONMENT,  # the model or its KV cache does not fit
    "disk": ENVIRONMENT,  # no space, or a folder that cannot be written
    "software": ENVIRONMENT,  # vLLM, FlashInfer or llama-benchy missing or of an unsupported version
    "target": ENVIRONMENT,  # no FlashInfer there, or in a folder that others share
    "version": ENVIRONMENT,  # a FlashInfer release without a series
    "edited": ENVIRONMENT,  # a file is neither the release's nor ours, or FlashInfer is half patched
    "superseded": ENVIRONMENT,  # upstream has the change already
    "git": ENVIRONMENT,  # git is missing
    "write": ENVIRONMENT,  # read-only, or no space
    "lock": ENVIRONMENT,  # lock held by another process
    "cache": ENVIRONMENT,  # not a kernel cache of ours, or one that prebuilt kernels would hide
    "fetch": ENVIRONMENT,  # the wheel cannot be had, or is not the one that we know
    "build": ENVIRONMENT,  # kernels cannot be compiled here
    # It was tried, and failed.
    "server": FAILED,  # the server died, hung, or left a process behind
    "resolved": FAILED,  # vLLM runs something else than the profile expects
    "requests": FAILED,  # a request or llama-benchy failed
    "series": FAILED,  # the series does not do what its manifest says
    "gate": GATE,  # an accuracy gate failed
}


class Problem(click.ClickException):
    """A failure that a user can do something about; click prints it and exits with its code.

    kind: a key of EXIT_CODES. message: one line, with what was got and what was expected. remedy: one line.
    """

    def __init__(self, kind: str, message: str, remedy: str):
        super().__init__(message)
        self.kind = kind
        self.remedy = remedy
        self.exit_code = EXIT_CODES[kind]

    def format_message(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Any system error of the block as Problem("write") that names the file, or else `folder`."""
    try:
        yield
    except OSError as error:
        raise Problem(
            "write",
            f"{error.filename or folder} cannot be written: {error.strerror}",
            "run this as the owner of that folder, with space on its disk; what was interrupted is finished by the"
            " next run",
        ) from error
