"""The earlier design, as it is measured: attention over the newest tokens, in order."""

import pytest
import torch

from bench.static_cache import rolled


@pytest.mark.parametrize(("kv_format", "bound"), [("bf16", 0), ("int8", 1e-2)])
def test_a_commit_drops_the_oldest_frame(kv_format, bound):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(7, 1, 2, 4, 32, generator=generator).bfloat16()
    side = rolled.make(torch.cat(list(frames[:3]), 2), kv_format)
    for frame in frames[3:6]:
        side = rolled.commit(side, frame, kv_format)
    tokens = rolled.concatenate(side, frames[6])
    expected = torch.cat(list(frames[3:7]), 2)
    assert tokens.dtype == torch.bfloat16
    assert (tokens.float() - expected.float()).norm() <= bound * expected.float().norm()
