"""Tensors whose every byte is looked at: views of poisoned memory, copied and compared with what is around them."""

import torch

from lowp.formats import FORMATS
from lowp.paged.layouts import as_bits, k_and_v, tensor_sizes

POISON = 0xA5  # in every byte of memory before a call; no NaN in any format
GUARD = 512  # bytes before and after a tensor
LAYOUTS = ("NHD", "HND", "interleaved", "NHD interleaved", "HND, K and V in a page")


def poisoned(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor of poison, with a guard at its ends."""
    count = torch.Size(size).numel() * dtype.itemsize
    memory = torch.full((count + 2 * GUARD,), POISON, dtype=torch.uint8)
    return memory[GUARD:-GUARD].view(dtype).view(size)


def caches(
    layout: str, kv_format: str, pages: int, page_size: int, kv_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the K and the V cache as views of poisoned memory, in one of LAYOUTS."""
    dtype = FORMATS[kv_format].dtype
    if layout == LAYOUTS[-1]:
        k, v = poisoned((pages, 2, kv_heads, page_size, head_dim), dtype).unbind(1)
        return k, v
    sizes = tensor_sizes(layout, pages, page_size, kv_heads, head_dim)
    return k_and_v([poisoned(size, dtype) for size in sizes], head_dim)


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def moved(arguments: dict, device: str) -> dict:
    """Copy tensors to a device with the memory around them; views of one memory stay so."""
    memories: dict[int, torch.Tensor] = {}

    def move(x):
        if not isinstance(x, torch.Tensor):
            return x
        memory = memories.setdefault(x.untyped_storage().data_ptr(), memory_of(x).to(device, copy=True))
        return torch.empty(0, dtype=x.dtype, device=device).set_(
            memory.untyped_storage(), x.storage_offset(), x.shape, x.stride()
        )

    return {name: move(x) for name, x in arguments.items()}


def canonical(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor, every NaN in one form: its sign and payload mean nothing."""
    if tensor.dtype == torch.int8:
        return as_bits(tensor)
    mask, infinity = {
        torch.float8_e4m3fn: (0x7F, 0x7E),
        torch.bfloat16: (0x7FFF, 0x7F80),
        torch.float16: (0x7FFF, 0x7C00),
    }[tensor.dtype]
    bits = as_bits(tensor)
    return torch.where((bits & mask) > infinity, mask, bits)


def differences(exact: dict, result: dict) -> list[str]:
    """List the tensors whose memory differs, in values or around them. Both of `moved`, on the CPU."""
    messages = []
    for name, tensor in exact.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        expected, actual = (_comparable(arguments[name]) for arguments in (exact, result))
        if count := int((expected != actual).sum()):
            messages.append(f"{name}: {count} of {expected.numel()} values, or bytes around it, differ")
    return messages


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """All memory behind a tensor; of floating formats up to 16 bits with every NaN in one form."""
    memory = memory_of(tensor)
    return canonical(memory.view(tensor.dtype)) if tensor.is_floating_point() and tensor.itemsize <= 2 else memory
