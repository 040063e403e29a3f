"""The token forcer without a server: refused requests, and the token forced in each row.

The V1 processor runs on vLLM's own batch bookkeeping. The V2 processor runs on vLLM's own context class with
arrays that stand in for the GPU runner's buffers; the GPU runner itself is not run here.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality

from vllm_launch.plugin import forcer

VOCABULARY = 50


def params(ids, **changes):
    right = {
        "max_tokens": len(ids),
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {max(ids): 0.0},
        "extra_args": {"force_ids": ids},
    }
    return SamplingParams(**(right | changes))


def sampled(logits):
    return logits.argmax(-1).tolist()


def logits(rows):
    """Random logits [rows, VOCABULARY], the same in every call."""
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(rows))


def test_a_forced_request_and_a_plain_request_are_accepted():
    forcer.ForceTokens.validate_params(params([3, 1, 2]))
    forcer.ForceTokens.validate_params(SamplingParams(temperature=0.7, max_tokens=5))


@pytest.mark.parametrize("ids", [[], "3,4", [3, "4"], [3, 4.0], [True], [-1], 7])
def test_a_value_that_is_no_list_of_ids_is_refused(ids):
    with pytest.raises(ValueError, match="expected a non-empty list of token ids"):
        forcer.ForceTokens.validate_params(params([0], extra_args={"force_ids": ids}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"max_tokens": 3}, "max_tokens 2, the length"),
        ({"max_tokens": None}, "max_tokens 2, the length"),
        ({"temperature": 0.5}, "temperature 0"),
        ({"n": 2, "temperature": 1}, "n 1"),
        ({"ignore_eos": False}, "ignore_eos true"),
        ({"stop": ["a"]}, "none of stop"),
        ({"stop_token_ids": [4]}, "none of stop"),
        ({"min_tokens": 1}, "none of stop"),
        ({"logit_bias": None}, "logit_bias {8: 0}"),
        ({"logit_bias": {8: 1.0}}, "logit_bias {8: 0}"),
        ({"logit_bias": {7: 0.0}}, "logit_bias {8: 0}"),
    ],
)
def test_a_request_that_could_end_early_or_escape_the_vocabulary_check_is_refused(change, expected):
    with pytest.raises(ValueError) as refused:
        forcer.ForceTokens.validate_params(params([7, 8], **change))
    assert expected in str(refused.value)


def test_vllm_refuses_the_bias_of_an_id_outside_the_vocabulary():
    model_config = SimpleNamespace(get_vocab_size=lambda: VOCABULARY)
    params([VOCABULARY - 1])._validate_logit_bias(model_config)
    with pytest.raises(VLLMValidationError, match="out-of-vocab"):
        params([3, VOCABULARY, 5])._validate_logit_bias(model_config)


class V1:
    """A batch of vLLM's V1 runner around one processor."""

    def __init__(self):
        self.processor = forcer.ForceTokens(None, torch.device("cpu"), False)
        self.builder = BatchUpdateBuilder()
        self.size = 0

    def add(self, row, request_params):
        output = []
        self.builder.added.append((row, request_params, [1, 2], output))
        self.size = max(self.size, row + 1)
        return output

    def step(self):
        self.processor.update_state(self.builder.get_and_reset(self.size))
        return sampled(self.processor.apply(logits(self.size)))


def test_v1_forces_each_token_by_the_length_of_the_output():
    batch, free = V1(), sampled(logits(2))
    batch.add(0, SamplingParams())
    output = batch.add(1, params([5, 0, 49]))
    assert batch.step() == [free[0], 5]
    assert batch.step() == [free[0], 5], "a partial prefill is sampled too, and its token discarded"
    output.append(5)
    assert batch.step() == [free[0], 0]
    output.append(-1)  # a placeholder that asynchronous scheduling appends
    assert batch.step() == [free[0], 49]
    output.append(49)
    assert batch.step() == free, "after the last token nothing is forced"


def test_v1_follows_swaps_moves_and_removals():
    batch = V1()
    first, _, third = (batch.add(row, params([token, token + 1])) for row, token in enumerate((10, 20, 30)))
    assert batch.step() == [10, 20, 30]
    first.append(10)
    batch.builder.moved.append((0, 2, MoveDirectionality.SWAP))
    assert batch.step() == [30, 20, 11]
    third.append(30)
    batch.builder.removed_append(1)
    batch.builder.moved.append((2, 1, MoveDirectionality.UNIDIRECTIONAL))
    batch.size = 2
    assert batch.step() == [31, 11]
    batch.add(0, SamplingParams())
    assert batch.step() == [sampled(logits(2))[0], 11], "a plain request in the row of a forced one"


def test_v1_masks_all_tokens_but_the_forced_token_of_its_row():
    batch = V1()
    batch.add(1, params([7]))
    batch.size = 3
    batch.processor.update_state(batch.builder.get_and_reset(3))
    before = logits(3)
    after = batch.processor.apply(before.clone())
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[1].isfinite().nonzero().flatten().tolist() == [7]


@pytest.fixture
def v2():
    interface = pytest.importorskip(
        "vllm.v1.worker.gpu.sample.logits_processor", reason="this vLLM has no logits processors of the V2 runner"
    )
    from vllm_launch.plugin import forcer_v2

    assert issubclass(forcer_v2.ForceTokens, interface.LogitsProcessor)
    buffers = dict.fromkeys(("all_token_ids", "prefill_len", "total_len"))
    prompt_lengths = np.zeros(8, dtype=np.int32)
    state = interface.LogitsProcRequestState(
        device=torch.device("cpu"),
        max_num_reqs=8,
        vocab_size=VOCABULARY,
        prompt_len=SimpleNamespace(np=prompt_lengths),
        **buffers,
    )
    processor = forcer_v2.ForceTokens(SimpleNamespace(speculative_config=None), state)

    def add(slot, prompt_length, request_params):
        prompt_lengths[slot] = prompt_length
        return processor.add_request(slot, request_params)

    def step(**lengths):
        """Sample a token for each slot, in order; s3=7 is slot 3 with 7 tokens in its sequence."""
        slots = np.array([int(name[1:]) for name in lengths], dtype=np.int32)
        mapping, unused = torch.from_numpy(slots), torch.zeros(len(slots), dtype=torch.int64)
        context = interface.LogitsContext(
            expanded_idx_mapping=mapping,
            idx_mapping=mapping,
            idx_mapping_np=slots,
            expanded_local_pos=unused,
            input_ids=unused,
            pos=torch.tensor(list(lengths.values())) - 1,
            seq_lens_upper_bound_np=np.array([*lengths.values(), 0, 0], dtype=np.int32),  # padded, as on the GPU
        )
        return sampled(processor.apply(logits(len(slots)), context))

    return SimpleNamespace(add=add, step=step)


def test_v2_forces_by_slot_in_any_order_of_rows(v2):
    assert v2.add(5, 10, params([7, 8]))
    assert v2.add(2, 3, params([40, 41]))
    assert not v2.add(1, 3, SamplingParams())
    assert v2.step(s5=10, s2=3) == [7, 40]
    assert v2.step(s2=4, s1=3, s5=10) == [41, sampled(logits(3))[1], 7]
    assert v2.step(s5=11) == [8]


def test_v2_forces_nothing_in_partial_prefills_and_reused_slots(v2):
    free = sampled(logits(1))
    v2.add(0, 10, params([7]))
    assert v2.step(s0=4) == free
    assert v2.step(s0=10) == [7]
    assert v2.step(s0=11) == free
    v2.add(0, 10, SamplingParams())
    assert v2.step(s0=10) == free


def test_v2_refuses_bad_requests_and_speculative_decoding(v2):
    from vllm_launch.plugin import forcer_v2

    with pytest.raises(ValueError, match="max_tokens 1"):
        forcer_v2.ForceTokens.validate_params(params([7], max_tokens=2))
    with pytest.raises(ValueError, match="speculative"):
        forcer_v2.ForceTokens(SimpleNamespace(speculative_config=object()), None)
