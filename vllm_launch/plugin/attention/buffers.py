"""Device memory of the backend, made once a process: the decode kernel's workspace and the prefills' scratch.

Both are made in vLLM's profiling run, so that its memory budget counts them, and keep their addresses: CUDA graphs hold
them.
"""

import functools
from typing import NamedTuple

import torch

from lowp import sink_decode

SCRATCH_BYTES = 256 * 2**20
SCRATCH_PAGE = 16  # scratch is written as pages of so many rows


class Geometry(NamedTuple):
    """A layer's heads on this rank."""

    query_heads: int
    kv_heads: int
    head_dim: int


class Limits(NamedTuple):
    """What a server was started with: requests of a step, query tokens of a step, of a request, of a decode."""

    requests: int
    step_tokens: int
    request_tokens: int
    decode_tokens: int


class Buffers(NamedTuple):
    """workspace: of `sink_decode`. scratch: [K and V, rows, kv_heads, head_dim], bf16."""

    workspace: torch.Tensor
    scratch: torch.Tensor


def scratch_rows(limits: Limits, geometry: Geometry, window_left: int) -> int:
    """Return the rows of the scratch memory: the tokens whose keys and values, in BF16, a prefill call can gather.

    Room for one request of any length if SCRATCH_BYTES allow it, and for a step's new tokens behind a window. Raises
    NotImplementedError if even those do not fit.
    """
    row_bytes = 2 * geometry.kv_heads * geometry.head_dim * torch.bfloat16.itemsize
    most = SCRATCH_BYTES // row_bytes // SCRATCH_PAGE * SCRATCH_PAGE
    least = limits.step_tokens + max(window_left, 0)
    if least > most:
        raise NotImplementedError(
            f"{limits.step_tokens} tokens a step and a window of {max(window_left, 0)}: this prefill has scratch for "
            f"{most} tokens of {geometry.kv_heads} KV heads of {geometry.head_dim}: lower --max-num-batched-tokens"
        )
    return min(most, -(-max(limits.request_tokens, least) // SCRATCH_PAGE) * SCRATCH_PAGE)


@functools.cache
def allocate(limits: Limits, geometry: Geometry, rows: int, device: torch.device) -> Buffers:
    """Allocate the buffers; the same call returns the same ones."""
    workspace = sink_decode.make_workspace(limits.requests, *geometry, device, query_tokens=limits.decode_tokens)
    scratch = torch.zeros(2, rows, geometry.kv_heads, geometry.head_dim, dtype=torch.bfloat16, device=device)
    return Buffers(workspace, scratch)
