"""Decode steps of an engine that follows a script: what is timed, and what is refused."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
from bench.engine.cells import parse
from bench.engine.inside import steps
from bench.engine.inside.connector import AssumedCache

BLOCK, WINDOW = 16, 128


def a_cache(blocks: int):
    """A KV cache of two groups, as gpt-oss has it."""
    full = SimpleNamespace(block_size=BLOCK, sliding_window=None)
    window = SimpleNamespace(block_size=BLOCK, sliding_window=WINDOW)
    groups = [SimpleNamespace(kv_cache_spec=spec) for spec in (window, full)]
    return SimpleNamespace(num_blocks=blocks, kv_cache_groups=groups)


class FakeEngine:
    """Requests decode in the order of arrival, up to `room` at once, the first after `delay` steps."""

    def __init__(self, room=100, delay=0):
        self.room, self.delay = room, delay
        self.requests, self.aborted, self.lengths, self.calls, self.count = {}, [], [], [], 0

    def add_request(self, name, content, _sampling):
        self.requests[name] = AssumedCache.assumed
        self.lengths.append(len(content["prompt_token_ids"]))

    def abort_request(self, names):
        self.aborted += names
        for name in names:
            self.requests.pop(name, None)

    def collective_rpc(self, method):
        self.calls.append(method)
        return [[("short", 8, 4.0), ("long  kernel", 4, 400.0), ("idle", 4, 0.0)], [("other rank", 4, 800.0)]]

    def step(self):
        self.count += 1
        running = [*self.requests][: self.room] if self.count > self.delay else []
        return [
            SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=[index])])
            for index, name in enumerate(running)
        ]


def decode(engine, cell, batch, prefill=False):
    with steps.decoding(engine, parse(cell), batch, 4, 1000, prefill) as count:
        return steps.timed(engine, count, 4)


def test_all_sequences_decode_in_each_timed_step():
    engine = FakeEngine(delay=5)
    row = decode(engine, "4x512", 4)
    assert row["batch"] == 4 and len(row["step_ms_samples"]) == 4 and row["distinct_tokens"] == 4
    assert row["tokens_per_s"] == pytest.approx(4e3 / row["step_ms"], rel=0.5)
    assert max(engine.lengths) == 512 and not engine.requests and len({*engine.aborted}) == 4


def test_a_batch_that_does_not_decode_at_once_is_refused():
    engine = FakeEngine(room=3)
    with pytest.raises(steps.CellError, match="3 of 4"):
        decode(engine, "4x512", 4)
    assert not engine.requests


def test_a_full_cache_has_as_many_as_decode_at_once():
    engine = FakeEngine(room=3)
    assert decode(engine, "fullx512", 4)["batch"] == 3


def test_a_step_in_which_a_sequence_is_missing_ends_the_cell():
    engine = FakeEngine()
    with steps.decoding(engine, parse("4x512"), 4, 4, 1000, False) as count:
        engine.room = 3
        with pytest.raises(steps.CellError, match="3 of 4"):
            steps.timed(engine, count, 4)


def test_all_ranks_are_synchronised_around_timed_steps_alone():
    engine = FakeEngine()
    decode(engine, "4x512", 4)
    assert engine.calls == ["wait_for_device"] * 2


def test_kernels_are_the_first_ranks():
    engine = FakeEngine()
    with steps.decoding(engine, parse("4x512"), 4, 4, 1000, False):
        times = steps.kernels(engine, 4)
    assert [(entry.name, entry.calls, entry.us) for entry in times] == [("long kernel", 1, 100.0), ("short", 2, 1.0)]
    assert engine.calls[-2:] == ["start_kernels", "stop_kernels"]


@pytest.mark.parametrize("prefill", [True, False])
def test_prompts_are_assumed_or_prefilled(prefill):
    engine = FakeEngine()
    with steps.decoding(engine, parse("4x512"), 4, 4, 1000, prefill):
        assert {*engine.requests.values()} == {not prefill}


def test_first_tokens_are_of_prefilled_prompts_alone():
    engine = FakeEngine()
    AssumedCache.assumed = True
    assert len(steps.first_token_s(engine, 2048, 1000)) == steps.MAX_TTFTS
    assert len(steps.first_token_s(engine, 122_880, 1000)) == steps.MIN_TTFTS
    assert not AssumedCache.assumed and not engine.requests


def test_a_cell_needs_its_blocks():
    blocks = -(-(512 + 4 + steps.SPARE_TOKENS) // BLOCK) + WINDOW // BLOCK + 2
    assert steps.batch_of(parse("4x512"), a_cache(4 * blocks + 1), 16, 4) == 4
    assert steps.batch_of(parse("fullx512"), a_cache(9 * blocks), 16, 4) == 8
    assert steps.batch_of(parse("fullx512"), a_cache(90 * blocks), 16, 4) == 16
    for cell, cache, most in (("4x512", 4 * blocks, 16), ("fullx512", blocks, 16), ("32x512", 90 * blocks, 16)):
        with pytest.raises(steps.CellError):
            steps.batch_of(parse(cell), a_cache(cache), most, 4)
