"""Run a model with transformers and count its keys and values by magnitude, as the KV cache gets them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, Cache, DynamicLayer, GptOssForCausalLM, Mxfp4Config
from transformers.utils import logging

from flashinfer_patches.errors import Problem
from vllm_launch.model import Model
from vllm_launch.scales import magnitudes


class Counts(NamedTuple):
    """Counts of a layer's magnitudes: k of each KV head, or for int8 of each of its rotary pairs; v of each KV head.

    int64 [kv_heads, 32768]; k of int8 [kv_heads, head_dim / 2, 32768], of the pairs' norms.
    """

    k: torch.Tensor
    v: torch.Tensor


class CountingLayer(DynamicLayer):
    """A cache layer that counts keys, after rotary embedding, and values, and stores neither.

    Without a past every prompt starts at position 0.
    """

    def __init__(self, kv_format: str):
        super().__init__()
        self.count_keys = magnitudes.count_pairs if kv_format == "int8" else magnitudes.count
        self.counts = None

    def update(self, key_states, value_states, *args, **kwargs):
        counts = Counts(self.count_keys(key_states), magnitudes.count(value_states))
        self.counts = counts if self.counts is None else Counts(*map(torch.add, self.counts, counts))
        return key_states, value_states


def load(model: Model, device: str, *, is_mxfp4: bool) -> GptOssForCausalLM:
    """Load a gpt-oss model in BF16. device: cpu, cuda, or auto for all GPUs and then memory (needs accelerate)."""
    logging.disable_progress_bar()
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if is_mxfp4 else {}
    if device == "auto":
        options["device_map"] = device
    options |= {"dtype": torch.bfloat16, "attn_implementation": "eager", "local_files_only": True}
    loaded, report = GptOssForCausalLM.from_pretrained(model.path, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):  # filled with random numbers
        message = f"{model.name} lacks {len(missing)} tensors, first {missing[0]}"
        raise Problem("model", message, "download the model again; it is incomplete")
    return loaded.eval() if device == "auto" else loaded.eval().to(device)


def tokenize(model: Model, text: str) -> list[int]:
    """Token ids of a text by the model's own tokenizer, without special tokens added."""
    tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


@torch.no_grad()
def count(
    loaded: GptOssForCausalLM, prompts: Sequence[list[int]], show_status: Callable[[str], None], kv_format: str
) -> list[Counts]:
    """Run prompts and count each layer's keys and values, as the scales of a format need them; on the CPU."""
    layers = [CountingLayer(kv_format) for _ in loaded.model.layers]
    cache = Cache(layers=layers)
    for number, prompt in enumerate(prompts, 1):
        show_status(f"prompt {number} of {len(prompts)}")
        loaded.model(input_ids=torch.tensor([prompt], device=loaded.device), past_key_values=cache, use_cache=True)
    return [Counts(*(counts.cpu() for counts in layer.counts)) for layer in layers]
