"""Match the calls in a source file with the wrappers of the FlashInfer on PYTHONPATH, and print a JSON list.

Argument: a Python file that calls the wrappers as vLLM's FlashInfer backend does; it is read, not imported. Prints for
each call [line, callee, mismatch or ""].
"""

import ast
import inspect
import json
import sys
from pathlib import Path

import flashinfer
from flashinfer.attention import BatchAttentionWithAttentionSinkWrapper
from flashinfer.decode import fast_decode_plan

DECODE, PREFILL = flashinfer.BatchDecodeWithPagedKVCacheWrapper, flashinfer.BatchPrefillWithPagedKVCacheWrapper
RAGGED, SINKS = flashinfer.BatchPrefillWithRaggedKVCacheWrapper, BatchAttentionWithAttentionSinkWrapper
CONSTRUCTED = {wrapper.__name__: wrapper for wrapper in (DECODE, PREFILL, RAGGED, SINKS)}
# vLLM's names of the objects; `self` is a decode wrapper in its fast_plan_decode. prefill_wrapper is a PREFILL or a
# SINKS, which share plan() and run(), or of a class of vLLM's own, known by the first argument.
RECEIVERS = {
    "decode_wrapper": DECODE,
    "prefill_wrapper": PREFILL,
    "_context": PREFILL,
    "_native_context": PREFILL,
    "_new_tokens": RAGGED,
    "self": DECODE,
}
VLLMS_OWN = {"layer", "qo_indptr_cpu"}


def callee(call: ast.Call):
    """Return (name, function, number of arguments before those of the call); None for other calls."""
    match call.func:
        case ast.Name(id="fast_decode_plan"):
            return "fast_decode_plan", fast_decode_plan, 0
        case ast.Name(id=name) if name in CONSTRUCTED:
            return name, CONSTRUCTED[name].__init__, 1
        case ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr="plan" | "run" as method):
            if name in RECEIVERS and first_argument(call) not in VLLMS_OWN:
                wrapper = RECEIVERS[name]
                return f"{wrapper.__name__}.{method}", getattr(wrapper, method), 1
    return None


def first_argument(call: ast.Call) -> str | None:
    """Return the name of the first argument: of its keyword or its variable."""
    if call.args:
        return getattr(call.args[0], "id", None)
    return call.keywords[0].arg if call.keywords else None


def mismatch(function, before: int, call: ast.Call) -> str:
    """Return why the call's arguments do not match the function; "" if they do."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    if starred or any(word.arg is None for word in call.keywords):
        return "its arguments are unpacked, and cannot be read from the source"
    try:
        inspect.signature(function).bind(
            *[None] * (before + len(call.args)), **{word.arg: None for word in call.keywords}
        )
    except TypeError as error:
        return str(error)
    return ""


rows = []
for call in ast.walk(ast.parse(Path(sys.argv[1]).read_text())):
    if isinstance(call, ast.Call) and (called := callee(call)):
        name, function, before = called
        rows.append([call.lineno, name, mismatch(function, before, call)])
print(json.dumps(sorted(rows)))
