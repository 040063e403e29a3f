"""Teacher forcing inside vLLM: a request may name the tokens to "sample".

A request with `vllm_xargs: {"force_ids": [...]}` generates exactly these tokens, one per step, whatever the model
predicts. vLLM reads raw log-probabilities before any logits processor runs, so each forced token is returned with the
model's log-probability of it, computed by the decode kernel on the KV cache.

This `ForceTokens` is for vLLM's V1 model runner (`--logits-processors vllm_launch.plugin.forcer:ForceTokens`);
`forcer_v2` is for the V2 runner. Both log LOADED when vLLM creates them.
"""

from typing import TYPE_CHECKING

import torch
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

if TYPE_CHECKING:
    from vllm import SamplingParams

logger = init_logger("vllm.fp8_sinks")

FIELD = "force_ids"
LOADED = "fp8-sinks: token forcer loaded"


def forced_ids(params: "SamplingParams") -> list[int] | None:
    """The tokens that a request forces; None for a plain request."""
    return (params.extra_args or {}).get(FIELD)


def validate(params: "SamplingParams") -> None:
    """Raise ValueError, which vLLM answers with HTTP 400, unless every token of `force_ids` will be decoded.

    An id outside the vocabulary would end the engine, and a processor does not know the vocabulary. vLLM checks the
    tokens of `logit_bias` against it: a bias of 0 on the largest id has no other effect.
    """
    ids = forced_ids(params)
    if ids is None:
        return
    if not isinstance(ids, list) or not ids or any(type(token) is not int or token < 0 for token in ids):
        raise ValueError(f"{FIELD}: expected a non-empty list of token ids, got {str(ids)[:60]}")
    stops = {name: getattr(params, name) for name in ("stop", "stop_token_ids", "min_tokens")}
    expected = {
        f"max_tokens {len(ids)}, the length of the list": params.max_tokens == len(ids),
        "temperature 0 and n 1": params.temperature == 0 and params.n == 1,
        "ignore_eos true": params.ignore_eos,
        f"none of {', '.join(stops)}": not any(stops.values()),
        f"logit_bias {{{max(ids)}: 0}}, the largest id": params.logit_bias == {max(ids): 0},
    }
    missing = [setting for setting, is_set in expected.items() if not is_set]
    if missing:
        raise ValueError(f"{FIELD}: expected {'; '.join(missing)}")


def force(logits: torch.Tensor, tokens: dict[int, int]) -> None:
    """Mask all tokens but one in some rows, in place. logits: [rows, vocabulary]; tokens: token id by row."""
    if not tokens:
        return
    rows, columns = torch.tensor([[*tokens], [*tokens.values()]], device=logits.device)
    logits[rows] = float("-inf")
    logits[rows, columns] = 0.0


class ForceTokens(LogitsProcessor):
    """The forcer for vLLM's V1 model runner."""

    @classmethod
    def validate_params(cls, sampling_params):
        validate(sampling_params)

    def __init__(self, vllm_config, device, is_pin_memory):
        # Row of the batch -> (tokens to force, tokens decoded so far). vLLM appends to the second list itself.
        self.requests: dict[int, tuple[list[int], list[int]]] = {}
        logger.info(LOADED)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, _state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Force the next token of each row. Rows whose prompt is not finished have no output: their step is 0."""
        steps = {row: (ids, len(output)) for row, (ids, output) in self.requests.items()}
        force(logits, {row: ids[step] for row, (ids, step) in steps.items() if step < len(ids)})
        return logits


def _state(params, prompt_ids, output_ids) -> tuple[list[int], list[int]] | None:
    ids = forced_ids(params)
    return None if ids is None else (ids, output_ids)
