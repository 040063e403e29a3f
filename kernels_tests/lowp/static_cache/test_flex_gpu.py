"""Compiled FlexAttention over a ring on a GPU: BF16, and the mixed formats that the installed torch reads."""

import pytest
import torch

from kernels_tests.lowp.static_cache.frames import quantized_as
from kernels_tests.lowp.static_cache.rolled import STORAGES
from lowp.paged.tight import problems
from lowp.static_cache import attend, reference

pytestmark = pytest.mark.gpu
FRAME_TOKENS, WINDOW = 16, 512
REFUSALS = ("Mixed query, key, and value dtype", "Expected query, key, and value to have the same dtype")


@pytest.mark.parametrize("name", [name for name, (_, _, backends) in STORAGES.items() if "flex" in backends])
def test_compiled_flex_passes_the_tight_test_or_torch_refuses_the_formats(name):
    k_storage, v_storage, _ = STORAGES[name]
    shape = {"layers": 1, "frame_tokens": FRAME_TOKENS, "windows": (WINDOW,), "device": "cuda"}
    cache = quantized_as(k_storage, v_storage, torch.bfloat16, **shape)
    step = torch.compile(lambda q, k, v: attend(q, cache, 0, k, v, "flex"), fullgraph=True)
    for number in range(WINDOW // FRAME_TOKENS + 3):
        generator = torch.Generator().manual_seed(number)
        q, k, v = torch.randn(3, *cache.frame_shape, generator=generator).to("cuda", torch.bfloat16)
        if number % 8 == 1 or number == WINDOW // FRAME_TOKENS + 2:
            exact = reference.attention(q.float(), cache.rings[0], k, v).double()
            try:
                out = step(q, k, v)
            except Exception as error:
                assert name != "plain" and any(text in str(error) for text in REFUSALS), error
                return
            assert not problems(*(x.transpose(1, 2).flatten(0, 1) for x in (out, exact)), rel_l2=5e-3)
        cache.update(k, v, 0)
