"""Run by test_guard: the settings that the installed vLLM's parser reads from words (stdin: JSON list of word lists).

Prints JSON: `options`, every option string; `set`, for each list the sorted settings that it sets, or null if the
parser refuses the words. Values are not converted: only the names of the settings matter.
"""

import json
import sys

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:  # its place in vLLM 0.26 and 0.33
    from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser


def refuse(message):
    raise ValueError(message)


parser = make_arg_parser(FlexibleArgumentParser())
parser.error = refuse
for action in parser._actions:
    action.type = action.choices = None
    action.default = None


def settings(words):
    try:
        parsed = vars(parser.parse_args(words))
    except (ValueError, AssertionError, IndexError, SystemExit):
        return None
    return sorted(name for name, value in parsed.items() if value is not None)


output = sys.stdout
sys.stdout = sys.stderr  # --help prints
report = {
    "options": sorted(option for action in parser._actions for option in action.option_strings),
    "set": [settings(words) for words in json.load(sys.stdin)],
}
json.dump(report, output)
