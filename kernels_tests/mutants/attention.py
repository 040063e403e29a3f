"""Mutants of our CPU attention; the file in FP8_SINKS_MUTANT names the current one at every step."""

import itertools
import os
from pathlib import Path

import torch
from vllm.logger import init_logger

from vllm_launch.plugin import cpu_attention
from vllm_launch.plugin.cpu_cache import RoundingCpuImpl, round_to_grid
from vllm_launch.plugin.cpu_widen import WideningCpuImpl

logger = init_logger("vllm.fp8_sinks_mutants")

VARIABLE = "FP8_SINKS_MUTANT"
NONE = "none"
OUTPUT = 1.05  # factor on a broken kernel's output


def truncate(x: torch.Tensor) -> torch.Tensor:
    """Truncate to E4M3 towards zero, as vLLM's own cache writer does."""
    near = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    codes = near.view(torch.uint8) - (near.float().abs() > x.float().abs()).to(torch.uint8)
    return codes.view(torch.float8_e4m3fn).to(x.dtype)


WRITES = {
    "truncated": lambda key, value: (truncate(key), truncate(value)),
    "k_scale": lambda key, value: (key * 2, value),
    "v_scale": lambda key, value: (key, value * 1.5),
    # E4M3 holds all values of E5M2 but the smallest and the largest.
    "e5m2": lambda key, value: tuple(round_to_grid(x, 1.0, torch.float8_e5m2) for x in (key, value)),
}
SINKS = {
    "sinks_dropped": lambda sinks: None,
    "sinks_shifted": lambda sinks: sinks.roll(1),
}
NAMES = ["decode", "prefill", *WRITES, *SINKS]
RightImpl = {"native": RoundingCpuImpl, "widened": WideningCpuImpl}[cpu_attention()]


class MutantImpl(RightImpl):
    """Our CPU attention with the mutation that the file names."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        logger.info_once("mutants of the CPU attention are loaded")

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        mutant = _mutant()
        if mutant in WRITES:
            key, value = WRITES[mutant](key, value)
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *scales, **named_scales):
        mutant, sinks = _mutant(), self.sinks
        self.sinks = SINKS.get(mutant, lambda same: same)(sinks)
        try:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales, **named_scales)
        finally:
            self.sinks = sinks
        if mutant in ("decode", "prefill") and attn_metadata is not None:
            starts = attn_metadata.query_start_loc.tolist()
            for start, end in itertools.pairwise(starts):
                if (end - start == 1) == (mutant == "decode"):
                    output[start:end] *= OUTPUT
        return output


def _mutant() -> str:
    name = Path(os.environ[VARIABLE]).read_text()
    if name not in (NONE, *NAMES):
        raise ValueError(f"no mutant {name!r}; known: {NONE}, {', '.join(NAMES)}")
    return name
