"""The errors of all commands: a kind, its exit code (docs/exit-codes.md), a message and a remedy."""

import click

FAILED, USAGE, GATE, ENVIRONMENT = 1, 2, 3, 4
EXIT_CODES = {
    # The request cannot be carried out as written.
    "profile": USAGE,  # a profile, or an argument in it
    "suite": USAGE,  # a suite of a bench
    "sweep": USAGE,  # a sweep of `bench rollout`
    "file": USAGE,  # a file or folder that was named is missing, unreadable or of another run, or edited
    "scales": USAGE,  # a file of KV scales is broken, or of another model
    "compare": USAGE,  # two results differ in more than the KV cache and its decoder
    # This machine or this environment lacks something.
    "model": ENVIRONMENT,  # no such model, one without sinks, or one whose bytes are not counted
    "address": ENVIRONMENT,  # port taken, or exposed without a key
    "memory": ENVIRONMENT,  # the model or its KV cache does not fit
    "disk": ENVIRONMENT,  # a file or folder is not writable, or no space
    "software": ENVIRONMENT,  # vLLM, FlashInfer or llama-benchy missing or of an unsupported version
    "target": ENVIRONMENT,  # no FlashInfer, or its folder is shared
    "version": ENVIRONMENT,  # a FlashInfer release without a patch series
    "edited": ENVIRONMENT,  # FlashInfer has edited files, or is partially patched
    "superseded": ENVIRONMENT,  # FlashInfer has the changes already
    "git": ENVIRONMENT,  # git is missing
    "lock": ENVIRONMENT,  # lock held by another process, or its file has other text
    "cache": ENVIRONMENT,  # no kernel cache of ours, or prebuilt kernels hide it
    "fetch": ENVIRONMENT,  # the wheel cannot be downloaded, or has another hash
    "build": ENVIRONMENT,  # kernels cannot be compiled
    # The command ran and failed.
    "server": FAILED,  # the server died, hung, or left a process behind
    "resolved": FAILED,  # vLLM resolved other settings than the profile expects
    "requests": FAILED,  # a request or llama-benchy failed
    "series": FAILED,  # a patch does not apply, or gives other hashes than its manifest
    "gate": GATE,  # an accuracy gate or a check of `certify` failed
}


class Problem(click.ClickException):
    """A failure with a remedy; click prints it and exits with its code.

    kind: a key of EXIT_CODES. message: a line with the actual and the expected state. remedy: a line.
    """

    def __init__(self, kind: str, message: str, remedy: str):
        super().__init__(message)
        self.kind = kind
        self.remedy = remedy
        self.exit_code = EXIT_CODES[kind]

    def format_message(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}"
