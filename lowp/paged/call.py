"""The sizes that follow from a call over the paged cache, whichever kernel it is for."""

import torch

from lowp.paged.layouts import page_and_head_axis


class PagedCall:
    """A call with `k_cache`, `k_scale`, `v_scale` and `layout`. The sizes are valid once it is checked."""

    k_cache: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    layout: str

    @property
    def axes(self) -> tuple[int, int]:
        """The cache's axes of a page's slots and of the KV heads."""
        return page_and_head_axis(self.layout)

    @property
    def pages(self) -> int:
        return self.k_cache.shape[0]

    @property
    def page_size(self) -> int:
        return self.k_cache.shape[self.axes[0]]

    @property
    def cache_strides(self) -> dict[str, int]:
        """Bytes from page to page, from KV head to KV head and from slot to slot, as the kernels' parameters."""
        slot_axis, head_axis = self.axes
        axes = {"page_stride": 0, "head_stride": head_axis, "slot_stride": slot_axis}
        return {name: self.k_cache.stride(axis) * self.k_cache.element_size() for name, axis in axes.items()}

    @property
    def k_granularity(self) -> str:
        return granularity(self.k_scale)

    @property
    def v_granularity(self) -> str:
        return granularity(self.v_scale)


def granularity(scale: torch.Tensor | None) -> str:
    """Return the granularity of a valid scale: none, tensor, head, token_head or channel."""
    if scale is None:
        return "none"
    return "tensor" if scale.numel() == 1 else {1: "head", 2: "channel", 3: "token_head"}[scale.dim()]


def address(tensor: torch.Tensor | None) -> int | None:
    """Return the address of a tensor's first element, a null pointer without a tensor."""
    return None if tensor is None else tensor.data_ptr()
