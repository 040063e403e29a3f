"""Run by test_choice.py: parse command lines with the installed vLLM's parser (stdin: JSON list of word lists).

Prints a JSON list: the values of SETTINGS that each sets, as text.
"""

import json
import sys

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:  # its place in vLLM 0.26 and 0.33
    from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

SETTINGS = ("attention_backend", "kv_cache_dtype", "kv_cache_dtype_skip_layers")

output = sys.stdout
sys.stdout = sys.stderr
parser = make_arg_parser(FlexibleArgumentParser())
parsed = [vars(parser.parse_args(words)) for words in json.load(sys.stdin)]
values = [{name: getattr(settings[name], "name", settings[name]) for name in SETTINGS} for settings in parsed]
json.dump(values, output, default=str)
