"""`python -m bench.rollout.linears OUT.json DEVICE`: linear layers of a model of real size, BF16 and as MX, alone."""

import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from bench.record.steps import save
from bench.rollout.result import LinearRow
from lowp.mx_linear import apply_mx

DIM, HEADS, HEAD_DIM = 1536, 24, 64
TOKENS = {"cuda": (16, 64, 256, 1024), "cpu": (16,)}
SHAPES = {"D x 4D": (DIM, 4 * DIM), "D x 3HD": (DIM, 3 * HEADS * HEAD_DIM)}
KERNELS = {"bf16": None, "mxfp8": (8, "auto"), "mxfp4": (4, "auto"), "float8-row": (8, "float8-row")}
CALLS = 50


class Layer(nn.Module):
    """A linear layer with a name that `apply_mx` selects."""

    def __init__(self, inputs: int, outputs: int, device: str):
        super().__init__()
        torch.manual_seed(0)
        self.mlp = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16, device=device)

    def forward(self, x):
        return self.mlp(x)


@torch.no_grad()
def measure(device: str) -> list[LinearRow]:
    rows = []
    for shape, (inputs, outputs) in SHAPES.items():
        for kernel, arguments in KERNELS.items():
            sizes = {"shape": shape, "inputs": inputs, "outputs": outputs, "kernel": kernel}
            layer, sqnr, error = Layer(inputs, outputs, device), None, None
            try:
                if arguments:
                    sqnr = apply_mx(layer, bits=arguments[0], kernel=arguments[1]).layers[0].sqnr
                run = compiled(layer) if device == "cuda" else layer
            except (NotImplementedError, ImportError) as refusal:
                error = " ".join(str(refusal).split())
            for tokens in TOKENS[device]:
                ms = None if error else time_ms(run, torch.randn(tokens, inputs, dtype=torch.bfloat16, device=device))
                rows.append(LinearRow(**sizes, tokens=tokens, ms=ms, sqnr=sqnr, error=error))
    return rows


def compiled(layer: nn.Module):
    """Compile a layer with a graph for each number of tokens.

    Layers share their code: without a reset later ones would have dynamic shapes, and run eagerly beyond torch's limit
    of graphs.
    """
    torch._dynamo.reset()
    return torch.compile(layer, dynamic=False)


def time_ms(run, x: torch.Tensor) -> float:
    """Median of single calls, each with the host's launch."""
    times = []
    for _ in range(3 + CALLS):
        start = synchronised(x)
        run(x)
        times.append(1e3 * (synchronised(x) - start))
    return median(times[3:])


def synchronised(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    save(Path(sys.argv[1]), list[LinearRow], measure(sys.argv[2]))
