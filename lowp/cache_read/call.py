"""One call of `cache_read`: made by `api`, checked by `checks`, run by `launch`."""

from dataclasses import dataclass

import torch

from lowp.paged.call import PagedCall


@dataclass(frozen=True)
class Call(PagedCall):
    """The arguments of `cache_read`, whose docstring has their shapes, and the sizes that follow from them.

    The sizes are valid once `checks` has passed the call.
    """

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    starts: torch.Tensor | None
    ends: torch.Tensor
    cu_out: torch.Tensor
    k_out: torch.Tensor
    v_out: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    layout: str
    overlap: bool

    @property
    def sequences(self) -> int:
        return self.ends.shape[0]

    @property
    def rows(self) -> int:
        """Rows of the outputs."""
        return self.k_out.shape[0]

    @property
    def head_dim(self) -> int:
        return self.k_out.shape[2]

    @property
    def kv_heads(self) -> int:
        return self.k_out.shape[1]

    @property
    def table_width(self) -> int:
        """Pages of a row of the block table."""
        return self.block_table.shape[1]

    @property
    def token_scales(self) -> bool:
        """Whether K or V has a scale for each token and head."""
        return "token_head" in (self.k_granularity, self.v_granularity)

    @property
    def channel_scales(self) -> bool:
        """Whether K has a scale for each channel."""
        return self.k_granularity == "channel"
