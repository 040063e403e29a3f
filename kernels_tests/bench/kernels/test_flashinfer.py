"""How FlashInfer's kernels are called, without a GPU: stand-ins that record their arguments."""

import sys
from types import ModuleType

import pytest
import torch

from bench.kernels import peers
from lowp.paged import inputs
from lowp.paged.shapes import Shape, even

CALLS: list[tuple] = []  # of the kernels, in their order
SHAPES = [even(2, 32), Shape((300, 16, 100)), even(2, 200, window_left=127), even(1, 40, head_dim=128)]
SHAPES.append(even(2, 40, query_format="fp16"))


class Wrapper:
    """BatchDecodeWithPagedKVCacheWrapper: rebuilds block table and lengths from the arguments of plan()."""

    def __init__(self, _workspace, layout, **options):
        assert layout == "HND" and options["use_cuda_graph"] and options["backend"] == "fa2"
        self.buffers = [options[f"paged_kv_{name}_buffer"] for name in ("indptr", "indices", "last_page_len")]

    def plan(self, indptr, indices, last_page, heads, kv_heads, head_dim, page_size, *, use_sinks=False, **options):
        assert all(torch.equal(*pair) for pair in zip(self.buffers, (indptr, indices, last_page), strict=True))
        assert {tensor.dtype for tensor in (indptr, indices, last_page)} == {torch.int32}
        assert (heads, kv_heads, page_size) == (64, 8, 16) and options["q_data_type"] in (torch.bfloat16, torch.float16)
        counts = indptr.diff()
        self.lengths, self.use_sinks, self.planned = (counts - 1) * page_size + last_page, use_sinks, options
        self.planned["head_dim"] = head_dim
        self.table = torch.zeros(len(counts), int(counts.max()), dtype=torch.int32)
        for row, pages in enumerate(indices.split(counts.tolist())):
            self.table[row, : len(pages)] = pages

    def run(self, q, kv, *, out, enable_pdl, sinks=None):
        assert (sinks is not None) == self.use_sinks and isinstance(enable_pdl, bool)
        assert kv[0].dtype == self.planned["kv_data_type"] and q.shape[2] == self.planned["head_dim"]
        options = (self.planned["sm_scale"], self.planned["window_left"])
        CALLS.append((q, kv, out, self.table, self.lengths, sinks, *options))


def xqa(q, kv, *, workspace_buffer, block_tables, seq_lens, max_seq_len, sinks, out, **options):
    """trtllm_batch_decode_with_kv_cache with backend xqa."""
    assert max_seq_len == seq_lens.max() and options["backend"] == "xqa" and options["bmm2_scale"] == 1
    assert options["kv_layout"] == "HND"
    CALLS.append((q, kv, out, block_tables, seq_lens, sinks, options["bmm1_scale"], options["window_left"]))


@pytest.fixture(autouse=True)
def flashinfer(monkeypatch):
    for name, content in {
        "flashinfer": {"BatchDecodeWithPagedKVCacheWrapper": Wrapper},
        "flashinfer.decode": {"trtllm_batch_decode_with_kv_cache": xqa},
    }.items():
        module = ModuleType(name)
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(peers, "_workspace", lambda _owner: None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", [kernel for kernel in peers.KERNELS if kernel.source == "flashinfer"], ids=str)
def test_flashinfers_kernels_get_the_inputs(kernel, shape):
    data = inputs.build(shape, layers=2, device="cpu")
    used = torch.arange(data.block_table.shape[1]) < (-(-data.seq_lens // 16))[:, None]
    for setting in kernel.settings:
        CALLS.clear()
        for call in kernel.calls(data, setting):
            call()
        assert len(CALLS) == 2
        for layer, (q, kv, out, table, lengths, sinks, sm_scale, window_left) in enumerate(CALLS):
            cache = data.caches[kernel.kv_format][layer]
            assert q is data.q[layer] and out is data.out[layer] and kv[0] is cache[0] and kv[1] is cache[1]
            assert torch.equal(table[used], data.block_table[used]) and torch.equal(lengths, data.seq_lens)
            assert sinks is (data.sinks if kernel.sinks else None)
            assert (sm_scale, window_left) == (data.sm_scale, shape.window_left)
