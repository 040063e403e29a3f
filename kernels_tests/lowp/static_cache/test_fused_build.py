"""The kernel of ours compiles for Hopper without spills, and fits the shared memory of others. Needs triton, no GPU."""

import re
import subprocess
from importlib.util import find_spec

import pytest

from lowp.static_cache.fused import SCALING, choose_launch, product_types
from lowp.static_cache.store import is_quantized

pytestmark = [pytest.mark.compile, pytest.mark.skipif(find_spec("triton") is None, reason="no triton")]
STORAGES = [
    ("bf16", "none", "bf16", "none"),
    ("bf16", "none", "e4m3", "fixed"),
    ("bf16", "none", "int8", "token_head"),
    ("e4m3", "token_head", "e4m3", "fixed"),
    ("int8", "token_head", "int8", "token_head"),
    ("mxfp8", "block", "mxfp8", "block"),
    ("bf16", "none", "mxfp4", "block"),
    ("int4", "token_head", "int4", "token_head"),
]
SHARED_BYTES = {90: 227 << 10, 120: 99 << 10}  # of a block
TYPES = {"token": "*fp32", "fixed": "*fp32", "block": "*u8"}


@pytest.mark.parametrize("storage", STORAGES, ids=" ".join)
@pytest.mark.parametrize("frame_tokens", [16, 64, 256])
@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_shared_memory_suffices_and_hopper_spills_nothing(arch, frame_tokens, storage, tmp_path):
    compiled = build(arch, frame_tokens, *storage)
    assert compiled.metadata.shared <= SHARED_BYTES[arch]
    if arch == 90:
        assert stack_bytes(compiled.asm["cubin"], tmp_path / "kernel.cubin") == 0


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("storage", STORAGES, ids=" ".join)
def test_products_read_each_element_once(storage, head_dim):
    """4 threads side by side hold kWidth neighbours each of a product's inner axis: no more than it has."""
    assembly = build(90, 16, *storage, head_dim).asm["ttgir"]
    products = re.findall(r"tt\.dot .*?tensor<\d+x(\d+)x\w+, #ttg\.dot_op<.*?kWidth = (\d+)", assembly)
    assert len(products) == 6, "two of a whole tile, of a tile's part, of the current frame"
    assert all(4 * int(width) <= int(inner) for inner, width in products)


def build(arch: int, frame_tokens: int, k_format: str, k_scale: str, v_format: str, v_scale: str, head_dim: int = 64):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lowp.static_cache.triton_kernel import attend_split

    launch = choose_launch(24, frame_tokens, 65536, 132, SHARED_BYTES[arch])
    k_scaling, v_scaling = (SCALING.get(scale, scale) for scale in (k_scale, v_scale))
    codes = {name: "*u8" if is_quantized(x) else "*bf16" for name, x in (("k_codes", k_format), ("v_codes", v_format))}
    integers = dict.fromkeys(("heads", "slots", "window", "frame_tokens"), "i32")
    arguments = {
        **dict.fromkeys(("q", "new_k", "new_v"), "*bf16"),
        **codes,
        "k_scale": TYPES.get(k_scaling, "constexpr"),
        "v_scale": TYPES.get(v_scaling, "constexpr"),
        "end": "*i64",
        "out": "*fp32",
        "lse": "*fp32",
        **integers,
        "log2_scale": "fp32",
    }
    types = product_types(True, (k_format, k_scaling), (v_format, v_scaling))
    tile = (head_dim, launch.block_m, launch.block_n, min(launch.block_m, launch.block_n), launch.splits)
    constants = dict(
        zip(attend_split.arg_names[15:], (k_format, v_format, k_scaling, v_scaling, *tile, *types), strict=True)
    )
    constants |= {name: None for name, kind in arguments.items() if kind == "constexpr"}
    names = attend_split.arg_names
    aligned = [index for index, name in enumerate(names) if _is_aligned(arguments.get(name))]
    source = ASTSource(
        attend_split,
        {name: arguments.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def stack_bytes(cubin: bytes, path) -> int:
    from triton import knobs

    path.write_bytes(cubin)
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", text)[1])


def _is_aligned(kind: str | None) -> bool:
    return kind is not None and (kind.startswith("*") or kind == "i32")
