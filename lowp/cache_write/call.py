"""One call of `cache_write`: made by `api`, checked by `checks`, run by `launch`."""

from dataclasses import dataclass

import torch

from lowp.paged.call import PagedCall


@dataclass(frozen=True)
class Rotation:
    """The further arguments of `rope_cache_write`."""

    q: torch.Tensor
    q_out: torch.Tensor
    positions: torch.Tensor
    cos_sin: torch.Tensor


@dataclass(frozen=True)
class Call(PagedCall):
    """The arguments of `cache_write`, whose docstring has their shapes, and the sizes that follow from them.

    The sizes are valid once `checks` has passed the call.
    """

    k: torch.Tensor
    v: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    slot_mapping: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    layout: str
    saturated: torch.Tensor | None
    overlap: bool
    rotation: Rotation | None = None

    @property
    def tokens(self) -> int:
        return self.slot_mapping.shape[0]

    @property
    def head_dim(self) -> int:
        return self.k.shape[2]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def query_heads(self) -> int:
        """Query heads that are rotated; 0 without rotation."""
        return self.rotation.q.shape[1] if self.rotation else 0

    @property
    def computed_scales(self) -> bool:
        """Whether the call computes the scales, one per token and head, and writes them."""
        return self.k_scale is not None and self.k_scale.shape == self.k_cache.shape[:3]

    @property
    def channel_scales(self) -> bool:
        """Whether K has a scale for each channel."""
        return self.k_granularity == "channel"

    @property
    def cache_slots(self) -> int:
        """Slots of all pages."""
        return self.pages * self.page_size
