"""A model with the names of a world model's layers, for the tests of `apply_mx`."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

WIDTH = 64
LINEAR_LAYERS = 16
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="no torchao: see locks/world-model.in")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "out": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 2 * WIDTH), "fc2": nn.Linear(2 * WIDTH, WIDTH, bias=False)})
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, _, v = self.attn["qkv"](x).chunk(3, -1)
        x = x + self.attn["out"](q * v)
        return self.gate(x + self.mlp["fc2"](self.mlp["fc1"](x).relu()))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.Module()
        self.core.blocks = nn.ModuleList(Block() for _ in range(3))
        self.final_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        for block in self.core.blocks:
            x = block(x)
        return self.final_proj(x)


def make_model():
    """Make a model in BF16, of three blocks."""
    torch.manual_seed(0)
    return Model().bfloat16()


def weight_types(model):
    return {name: type(m.weight).__name__ for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def plain(model):
    return [name for name, kind in weight_types(model).items() if kind == "Parameter"]
