"""One call of `sink_decode`: made by `api`, checked by `checks`, run by `launch`."""

from dataclasses import dataclass

import torch

from lowp.paged.call import PagedCall


@dataclass(frozen=True)
class Call(PagedCall):
    """The arguments of `sink_decode`, whose docstring has their shapes, and the sizes that follow from them.

    The sizes are valid once `checks` has passed the call.
    """

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    sinks: torch.Tensor
    sm_scale: float
    window_left: int
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    layout: str
    out: torch.Tensor
    lse: torch.Tensor | None
    workspace: torch.Tensor | None
    longest: int | None = None
    overlap: bool | None = None

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def query_tokens(self) -> int:
        """Query tokens of a sequence: a q of 3 axes has one."""
        return self.q.shape[1] if self.q.dim() == 4 else 1

    @property
    def query_heads(self) -> int:
        return self.q.shape[-2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[-1]

    @property
    def kv_heads(self) -> int:
        return self.k_cache.shape[self.axes[1]]

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.query_heads // self.kv_heads

    @property
    def table_width(self) -> int:
        """Pages of a row of the block table."""
        return self.block_table.shape[1]
