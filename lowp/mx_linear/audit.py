"""The audit of converted layers: what became of each weight, and the error of its output."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lowp.mx_linear.recipes import Recipe
from lowp.mx_linear.select import category, linear_layers, shorten

ROWS = 64  # of the random input that a layer's error is measured on


@dataclass(frozen=True)
class LayerAudit:
    """A converted layer, and the error of its output (without bias) on standard normal input.

    Against the product in fp32 of the same BF16 input and weight: mae and max_error are absolute, relative is
    |error| / |output| (L2 norms), sqnr its inverse in dB, or None where the output is exact (a weight of zeros).
    """

    name: str
    category: str
    tensor_type: str
    in_features: int
    out_features: int
    mae: float
    relative: float
    max_error: float
    sqnr: float | None


@dataclass(frozen=True)
class Audit:
    """The layers that `apply_mx` converted, with the format, kernel, scope and late_layers it applied."""

    format: str
    kernel: str
    scope: str
    late_layers: int
    layers: tuple[LayerAudit, ...]

    @property
    def count(self) -> int:
        return len(self.layers)

    @property
    def categories(self) -> dict[str, int]:
        """The number of layers in each category."""
        return dict(Counter(layer.category for layer in self.layers))

    def table(self) -> str:
        """Format a summary line and a line for each layer, as `mxfp_list` prints them."""
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        counts = ", ".join(f"{count} {name}" for name, count in self.categories.items())
        lines = [
            f"{self.format} ({self.kernel}): {self.count} linear layers ({counts})",
            f"{'layer':{width}}  category  tensor        MAE       relative  max       SQNR",
        ]
        for layer in self.layers:
            sqnr = "exact" if layer.sqnr is None else f"{layer.sqnr:.1f} dB"
            lines.append(
                f"{layer.name:{width}}  {layer.category:8}  {layer.tensor_type:12}  {layer.mae:<8.2e}  "
                f"{layer.relative:<8.2e}  {layer.max_error:<8.2e}  {sqnr}"
            )
        return "\n".join(lines)


def reference_outputs(layers: Mapping[str, nn.Linear]) -> dict[str, torch.Tensor]:
    """Return each layer's output in fp32 on its `audit_input`, by path."""
    return {name: F.linear(audit_input(layer).float(), layer.weight.float()) for name, layer in layers.items()}


def audit_input(layer: nn.Linear) -> torch.Tensor:
    """Return a random BF16 input, equal in every call with the same in_features."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, layer.in_features, generator=generator).bfloat16().to(layer.weight.device)


def audit_layers(model: nn.Module, references: Mapping[str, torch.Tensor], recipe: Recipe) -> Iterator[LayerAudit]:
    """Yield the audit of each layer that has a reference output.

    Raises RuntimeError if a layer kept its weight, or an output is not finite.
    """
    layers = linear_layers(model)
    same = [name for name in references if type(layers[name].weight).__name__ != recipe.tensor_type]
    if same:
        kinds = sorted({type(layers[name].weight).__name__ for name in same})
        raise RuntimeError(
            f"torchao left {len(same)} of {len(references)} layers unconverted ({shorten(same)}): their weights are of "
            f"type {', '.join(kinds)}; expected {recipe.tensor_type}"
        )
    for name, reference in references.items():
        layer = layers[name]
        output = F.linear(audit_input(layer), layer.weight).float()
        if not output.isfinite().all():
            raise RuntimeError(f"{name} gives NaN or infinity as {recipe.format} with kernel {recipe.kernel!r}")
        error = output - reference
        noise, signal = error.norm().item(), reference.norm().item()
        yield LayerAudit(
            name=name,
            category=category(name),
            tensor_type=recipe.tensor_type,
            in_features=layer.in_features,
            out_features=layer.out_features,
            mae=error.abs().mean().item(),
            relative=noise / signal if noise else 0.0,
            max_error=error.abs().max().item(),
            sqnr=20 * math.log10(signal / noise) if noise else None,
        )
