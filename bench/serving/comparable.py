"""Settings that two profiles must share for their ratio to measure the KV cache and its decoder alone."""

from typing import NamedTuple

from bench.report.provenance import GIB
from bench.report.provenance import commit as commit_text
from bench.servers.result import RESOLVED_FIGURES, Requested
from bench.serving.result import ServingResult, ServingRow
from vllm_launch import arguments
from vllm_launch.decoder import choice, contract
from vllm_launch.marks import NONCE_VARIABLE
from vllm_launch.plan import CACHE_VARIABLES, FIXED_ENVIRONMENT

COMPARED = ("kv-cache-dtype", "kv-cache-dtype-skip-layers")  # the arguments that may differ
# Variables that are ours: paths of caches, a nonce, what every server of a commit gets, and what names the decoder.
OURS = (*CACHE_VARIABLES, NONCE_VARIABLE, *FIXED_ENVIRONMENT, *choice.VARIABLES)
VARYING = ("total_bytes", "free_bytes", "gpu_processes")  # of a machine; the first is compared in whole GiB
# Prefixes of resolved settings that follow from the KV cache: its dtype, layers and block sizes, our CPU cache and
# attention, and FlashInfer's kernel, which vLLM chooses by the cache's dtype.
FOLLOWING = ("kv_", "cpu_", "flashinfer")
# Prefixes of those that follow from the decoder: its attention backend, and what that records, supports and prefers.
OF_DECODER = ("decoder", "prefill", "cache_writer", "kv_format", "kv_block_sizes", "attention_backends")
OF_DECODER += ("flash_attention_version", "flashinfer", "cuda_graphs")
ABSENT, NOT_READ, NOT_KNOWN = "absent", "not read back", "not known"


class Difference(NamedTuple):
    """A setting that is not equal, and its values in A and B; ABSENT where a side has no such setting."""

    setting: str
    a: str
    b: str


def differences(a: ServingResult, row_a: ServingRow, b: ServingResult, row_b: ServingRow) -> list[Difference]:
    """Every setting in which two profiles differ besides COMPARED, the decoder, and what follows from them.

    The settings of an external server are not known: they differ from all others.
    """
    if row_a.requested is None or row_b.requested is None:
        known = (NOT_KNOWN if row.requested is None else "known" for row in (row_a, row_b))
        return [Difference("settings of the server", *known), *_unequal(_model(a), _model(b))]
    of_a, of_b = settings(a, row_a), settings(b, row_b)
    if all(row.resolved or row.rates for row in (row_a, row_b)):  # else a server that never ran has nothing to compare
        following = () if _cache(row_a.requested) == _cache(row_b.requested) else FOLLOWING
        following += () if row_a.decoder == row_b.decoder else OF_DECODER
        of_a, of_b = of_a | resolved_settings(row_a, following), of_b | resolved_settings(row_b, following)
    return _unequal(of_a, of_b)


def _unequal(of_a: dict[str, str], of_b: dict[str, str]) -> list[Difference]:
    pairs = ((name, of_a.get(name, ABSENT), of_b.get(name, ABSENT)) for name in dict.fromkeys([*of_a, *of_b]))
    return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]


def _model(result: ServingResult) -> dict[str, str]:
    return {f"model {name}": _text(value) for name, value in result.model if name != "path"}


def settings(result: ServingResult, row: ServingRow) -> dict[str, str]:
    """Machine, model, software, flags and environment."""
    source, requested = result.provenance, row.requested
    compared = COMPARED if row.decoder == "stock" else (*COMPARED, "attention-backend")  # follows from the decoder
    values = {f"machine {name}": value for name, value in source.machine if name not in VARYING}
    values["machine memory"] = f"{source.machine.total_bytes / GIB:.0f} GiB"
    values |= _model(result)
    values |= {f"version of {name}": value for name, value in source.versions.items()}
    values["FlashInfer patch set"] = source.patch
    values["commit"] = _commit(result)
    for name, value in requested.arguments.items():
        if name not in compared:  # as words: 8 from a profile is "8" from a command line, and --x and --no-x are one
            values[f"argument {name.removeprefix('no-')}"] = " ".join(arguments.words({name: value}))
    values |= {f"variable {name}": value for name, value in requested.environment.items() if name not in OURS}
    hidden = (*OURS, *requested.environment)  # the profile's variables replace inherited ones
    values |= {f"inherited {name}": value for name, value in source.environment.items() if name not in hidden}
    return {name: _text(value) for name, value in values.items()}


def resolved_settings(row: ServingRow, following: tuple[str, ...]) -> dict[str, str]:
    """The settings that the server really used. following: prefixes of those that may differ."""
    if row.resolved is None:
        return {"resolved settings": NOT_READ}
    left_out = (*RESOLVED_FIGURES, *following)
    return {f"resolved {name}": _text(value) for name, value in row.resolved if not name.startswith(left_out)}


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else str(value).lower()


def _cache(requested: Requested) -> dict:
    scales = {contract.KV_SCALES: requested.environment.get(contract.KV_SCALES)}
    return {name: requested.arguments.get(name) for name in COMPARED} | scales


def _commit(result: ServingResult) -> str:
    """The commit; files that are not known to be a commit's are equal to those of the same run alone."""
    source = result.provenance
    clean = source.git_commit is not None and source.git_dirty is False
    return commit_text(source) if clean else f"{commit_text(source)} (run {result.id})"
