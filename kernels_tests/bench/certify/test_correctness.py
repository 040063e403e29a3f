"""The checks of a certificate's kernels: right ones pass, and each wrong one fails its own check. Needs no GPU."""

import math

import pytest
import torch

from bench.certify import cases, correctness
from bench.certify.budget import OutOfTime, watch
from bench.certify.correctness import Kernels
from lowp.cache_read import cache_read
from lowp.cache_read import cases as reads
from lowp.cache_write import cache_write
from lowp.cache_write import cases as writes
from lowp.paged.layouts import as_bits
from lowp.sink_decode import sink_decode

never = watch(math.inf)


@pytest.fixture
def fewer_decode_cases(monkeypatch):
    """Every third decode case: with and without window, sink and several query tokens."""
    names = list(cases.decode_cases())[1::3]
    fewer = {name: case for name, case in cases.decode_cases().items() if name in names}
    monkeypatch.setattr(cases, "decode_cases", lambda: fewer)


def test_there_are_some_sixty_cases_of_every_format():
    named = cases.decode_cases() | cases.write_cases() | cases.read_cases()
    assert 55 <= len(cases.decode_cases()) + len(cases.write_cases()) + len(cases.read_cases()) <= 65
    assert {case.kv_format for case in named.values()} == {"e4m3", "bf16"}
    sinks = {case.sinks for case in cases.decode_cases().values()}
    assert {"near", -math.inf, 1e4, -1e4} == sinks
    assert all(case.poison for case in cases.decode_cases().values())


def test_right_kernels_pass():
    checks = {check.name: check for check in correctness.check_calls(Kernels(), "cpu", never)}
    assert {name: check.verdict for name, check in checks.items()} == {
        "decode": "passed",
        "cache_write": "passed",
        "cache_read": "passed",
    }
    assert not any(check.problems for check in checks.values())


def with_arguments(kernel, change):
    """The kernel with some of its arguments changed."""
    return lambda **arguments: kernel(**(arguments | change(arguments)))


def decode_then(change):
    """The decode kernel, and a change of its output."""

    def decode(**arguments):
        change(sink_decode(**arguments))

    return decode


def fails(**arguments):
    raise RuntimeError("NVRTC does not compile kernel.cu")


DECODE_MUTANTS = {
    "sinks dropped": with_arguments(sink_decode, lambda a: {"sinks": torch.full_like(a["sinks"], -math.inf)}),
    "sinks of the neighbour": with_arguments(sink_decode, lambda a: {"sinks": a["sinks"].roll(1)}),
    "last token missing": with_arguments(sink_decode, lambda a: {"seq_lens": (a["seq_lens"] - 1).clamp(min=0)}),
    "window too long": with_arguments(
        sink_decode, lambda a: {"window_left": a["window_left"] + (a["window_left"] >= 0)}
    ),
    "larger output": decode_then(lambda out: out.mul_(1.02)),
    "NaN": decode_then(lambda out: out.view(-1)[-1:].fill_(math.nan)),
    "nothing written": lambda **arguments: None,
    "not compiled": fails,
}
WRITE_MUTANTS = {
    "slot of the neighbour": with_arguments(cache_write, lambda a: {"slot_mapping": a["slot_mapping"].roll(1)}),
    "slot -1 is written": with_arguments(cache_write, lambda a: {"slot_mapping": a["slot_mapping"].clamp(min=0)}),
    "scale ignored": with_arguments(cache_write, lambda a: {"k_scale": None}),
    "heads swapped": with_arguments(cache_write, lambda a: {"v": a["v"].flip(1)}),
    "last token missing": with_arguments(cache_write, lambda a: {"slot_mapping": a["slot_mapping"][:-1]}),
    "not compiled": fails,
}
READ_MUTANTS = {
    "token missing": with_arguments(cache_read, lambda a: {"ends": (a["ends"] - 1).clamp(min=0)}),
    "row too late": with_arguments(cache_read, lambda a: {"cu_out": a["cu_out"] + 1}),
    "K and V swapped": with_arguments(cache_read, lambda a: {"k_out": a["v_out"], "v_out": a["k_out"]}),
    "scale ignored": with_arguments(cache_read, lambda a: {"v_scale": None}),
    "not compiled": fails,
}


CHECKS = {"decode": correctness.check_decode, "write": correctness.check_write, "read": correctness.check_read}


@pytest.mark.usefixtures("fewer_decode_cases")
@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        *(("decode", kernel) for kernel in DECODE_MUTANTS.values()),
        *(("write", kernel) for kernel in WRITE_MUTANTS.values()),
        *(("read", kernel) for kernel in READ_MUTANTS.values()),
    ],
    ids=[*DECODE_MUTANTS, *WRITE_MUTANTS, *READ_MUTANTS],
)
def test_a_wrong_kernel_fails(check, mutant):
    result = CHECKS[check](mutant, "cpu", never)
    assert result.verdict == "failed" and 1 <= len(result.problems) <= correctness.MAX_PROBLEMS


def test_a_byte_beside_the_cache_is_noticed():
    def write(**arguments):
        cache_write(**arguments)
        arguments["k_cache"].untyped_storage()[3] = 0

    assert correctness.check_write(write, "cpu", never).verdict == "failed"


def test_an_input_that_changes_is_noticed():
    def read(**arguments):
        cache_read(**arguments)
        arguments["ends"][0] += 1

    assert correctness.check_read(read, "cpu", never).verdict == "failed"


def test_replays_see_other_content_of_the_same_shapes():
    for (captured, *replayed), build in (
        (correctness.GRAPH_WRITE, writes.build),
        (correctness.GRAPH_READ, reads.build),
    ):
        for case in replayed:
            arguments, changed = build(captured), build(case)
            cases.with_content(arguments, changed)
            for name in ("k_cache", "slot_mapping", "block_table", "ends", "k_scale"):
                if name in changed:
                    assert torch.equal(as_bits_or_same(arguments[name]), as_bits_or_same(changed[name]))


def as_bits_or_same(tensor):
    return as_bits(tensor) if tensor.dtype.itemsize <= 2 else tensor


def test_time_is_watched_between_cases():
    ended = watch(0)
    with pytest.raises(OutOfTime, match="--seconds"):
        list(correctness.check_calls(Kernels(), "cpu", ended))
