"""The token forcer for vLLM's V2 model runner and its processor interface (GPUs, vLLM 0.32 and later)."""

from vllm.logger import init_logger
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from vllm_launch.plugin.forcer import LOADED, force, forced_ids, validate

logger = init_logger("vllm.fp8_sinks")


class ForceTokens(LogitsProcessor):
    """Keeps the requests by slot; the rows of a step are the requests of that step, in any order."""

    @classmethod
    def validate_params(cls, sampling_params):
        validate(sampling_params)

    def __init__(self, vllm_config, req_states):
        if vllm_config.speculative_config is not None:
            raise ValueError("the token forcer needs one row per request: serve without speculative decoding")
        self.prompt_lengths = req_states.prompt_len.np
        self.requests: dict[int, list[int]] = {}  # slot -> tokens to force
        logger.info(LOADED)

    def add_request(self, req_idx, sampling_params) -> bool:
        """Set the tokens of a slot, which another request may have had. Called again for a resumed request."""
        ids = forced_ids(sampling_params)
        self.requests.pop(req_idx, None)
        if ids is not None:
            self.requests[req_idx] = ids
        return ids is not None

    def apply(self, logits, ctx):
        """Force the next token of each row; before the end of a prompt the result is not used."""
        tokens = {}
        for row, (slot, length) in enumerate(zip(ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np, strict=False)):
            ids = self.requests.get(int(slot), [])
            step = int(length - self.prompt_lengths[slot])
            if 0 <= step < len(ids):
                tokens[row] = ids[step]
        force(logits, tokens)
        return logits
