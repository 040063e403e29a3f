"""Every way a command can fail: one message, one remedy, one exit code.

Exit codes (also in the README; 1 is an unexpected error, 2 a mistake on the command line):

    10 profile    11 model       12 address     13 memory      14 disk
    15 software   20 server      21 resolved    30 requests    31 gate
    32 file       33 compare
"""

import click

EXIT_CODES = {
    "profile": 10,  # the profile or an argument in it is wrong
    "model": 11,  # no such model, one without sinks, or one whose bytes are not counted
    "address": 12,  # port taken, or exposed without a key
    "memory": 13,  # the model or its KV cache does not fit
    "disk": 14,  # no space, or a folder that cannot be written
    "software": 15,  # vLLM, FlashInfer or llama-benchy missing or of an unsupported version
    "server": 20,  # the server died, hung, or left a process behind
    "resolved": 21,  # vLLM runs something else than the profile expects
    "requests": 30,  # a request or llama-benchy failed
    "gate": 31,  # an accuracy gate failed
    "file": 32,  # a result or step file cannot be read
    "compare": 33,  # two results differ in more than the KV cache
}


class Problem(click.ClickException):
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
