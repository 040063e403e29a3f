"""The kernel with some of its text replaced: wrong ones, each of which must fail, and one that rounds as a GPU does."""

import importlib.util
from pathlib import Path

import triton
import triton.language as tl

from lowp.static_cache import triton_kernel

# By name: a part of the kernel's text, its replacement, and a storage.
MUTANTS = {
    "slots": ("tl.load(end), window", "tl.load(end) + 8, window", "K int8 token, V int8 token"),
    "denominator": ("tl.sum(p, 1)", "tl.sum(p * v_factor[None, :], 1)", "K bf16, V int8 token"),
    "token of K": ("scale + base + slots", "scale + base + (slots + 1) % BLOCK_N", "K e5m2 token, V e4m3 head"),
    "token of V": ("scale + base + slots", "scale + base + (slots + 1) % BLOCK_N", "K bf16, V int8 token"),
    "nibbles": (
        "from_int4(stored & 15), from_int4(stored >> 4)",
        "from_int4(stored >> 4), from_int4(stored & 15)",
        "K int4 block, V int4 token",
    ),
}
PROBABILITIES_IN_BF16 = ("(p * v_factor[None, :]).to(v.dtype)", "rounded(p * v_factor[None, :], v).to(v.dtype)")


def mutated(old: str, new: str, folder: Path):
    """Return the kernel's module with a part of its text replaced, written to `folder`."""
    source = Path(triton_kernel.__file__).read_text()
    if old not in source:
        raise ValueError(f"{old!r} is not in the kernel; expected a part of its text")
    path = folder / "mutated_kernel.py"
    path.write_text(f"{source}\n\nfrom {__name__} import rounded\n".replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@triton.jit
def rounded(x, v):
    """Round fp32 to the nearest BF16, ties to even, where v in fp32 stands for BF16: the interpreter truncates."""
    if v.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x
