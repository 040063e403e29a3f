"""The checks of a model before `apply_mx` changes it."""

from collections.abc import Mapping

import torch
from torch import nn

from lowp.mx_linear.recipes import Recipe
from lowp.mx_linear.select import shorten


def check_not_compiled(model: nn.Module) -> None:
    """Raise if `model` or a part of it went through torch.compile: its graph has the old weights."""
    for name, module in model.named_modules():
        if (
            hasattr(module, "_orig_mod")  # the wrapper that torch.compile(module) returns
            or getattr(module, "_compiled_call_impl", None) is not None
            or hasattr(module.forward, "_torchdynamo_orig_callable")
        ):
            raise ValueError(f"{name or 'the model'} is compiled; expected apply_mx before torch.compile")


def check_layers(layers: Mapping[str, nn.Linear], recipe: Recipe) -> None:
    """Raise unless the recipe takes every layer: a plain BF16 weight, its shape, its device."""
    converted = [name for name, layer in layers.items() if type(layer.weight) is not nn.Parameter]
    if converted:
        kind = type(layers[converted[0]].weight).__name__
        raise ValueError(f"the weight of {shorten(converted)} is a {kind}; expected a plain Parameter, unconverted")
    for name, layer in layers.items():
        if layer.weight.dtype != torch.bfloat16:
            raise TypeError(
                f"{name} has {layer.weight.dtype} weights; expected torch.bfloat16, as of model.to(torch.bfloat16)"
            )
        if layer.in_features % recipe.k_multiple or layer.out_features % recipe.n_multiple:
            expected = f"in_features a multiple of {recipe.k_multiple}"
            expected += f", out_features of {recipe.n_multiple}" if recipe.n_multiple > 1 else ""
            raise ValueError(
                f"{name} has {layer.in_features} in_features and {layer.out_features} out_features; {recipe.format} "
                f"needs {expected}; name it in skip"
            )
        check_device(layer.weight.device, recipe)


def check_device(device: torch.device, recipe: Recipe) -> None:
    """Raise NotImplementedError, with the kernels that run instead, unless `device` has the units of the recipe."""
    if recipe.runs_on is None:
        return
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is not None and recipe.runs_on(capability):
        return
    owner = "a CPU" if capability is None else f"a GPU of SM{capability[0]}{capability[1]}"
    owner = owner if device.type in ("cuda", "cpu") else f"device {device}"
    fast = recipe.kernel == "auto" and capability is not None and capability >= (8, 9)
    raise NotImplementedError(
        f"kernel {recipe.kernel!r} with {recipe.format} needs {recipe.units}; this is {owner}; use kernel='emulated' "
        "for its accuracy (no speed)" + (", or kernel='float8-row' for speed" if fast else "")
    )
