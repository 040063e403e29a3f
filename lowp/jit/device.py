"""The properties of a GPU that a launch depends on."""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """arch: as NVRTC names it (sm_90a). clusters: whether it has thread block clusters. Shared memory in bytes."""

    arch: str
    clusters: bool
    sms: int
    shared_per_cta: int
    shared_per_sm: int


@functools.cache
def device_of(device: torch.device) -> Device:
    """Read the properties of a GPU. Raises NotImplementedError below sm_80."""
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major * 10 + properties.minor
    if capability < 80:
        raise NotImplementedError(f"the device is sm_{capability}; this kernel needs sm_80 or later")
    return Device(
        arch=f"sm_{capability}{'a' if capability >= 90 else ''}",
        clusters=capability >= 90,
        sms=properties.multi_processor_count,
        shared_per_cta=properties.shared_memory_per_block_optin,
        shared_per_sm=properties.shared_memory_per_multiprocessor,
    )
