"""Stand-ins for a GPU and its driver, for tests of a call on its way there: tensors without memory, launches kept."""

from contextlib import nullcontext

import torch

from lowp.jit.device import Device

H200 = Device("sm_90a", True, 132, 232_448, 233_472)
A100 = Device("sm_80", False, 108, 166_912, 167_936)


def without_memory(arguments: dict) -> dict:
    """The arguments with tensors on torch's meta device, of the same strides."""
    return {
        name: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        if isinstance(x, torch.Tensor)
        else x
        for name, x in arguments.items()
    }


def launches_of(launch, device: Device, monkeypatch) -> list[tuple]:
    """Replace what a room's `launch` calls. Returns the list that launches go to: kernel (arch, variant), grid,
    parameters, overlap."""
    launches = []
    monkeypatch.setattr(launch.build, "kernel", lambda arch, variant, _index: (arch, variant))
    monkeypatch.setattr(launch.launcher, "launch", lambda *args, overlap: launches.append((*args, overlap)))
    monkeypatch.setattr(launch, "device_of", lambda _device: device)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    return launches
