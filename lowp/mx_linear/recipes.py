"""What torchao can run: formats by kernel, the tensor type of each, its shapes and GPUs."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A format and the kernel that multiplies it.

    tensor_type: the class of a converted weight. k_multiple, n_multiple: its in_features and out_features are
    multiples of these. runs_on: whether a GPU of a compute capability (major, minor) has the units; None: any device.
    units: the GPUs for which runs_on holds, in words.
    """

    format: str
    kernel: str
    tensor_type: str
    k_multiple: int
    n_multiple: int
    runs_on: Callable[[tuple[int, int]], bool] | None = None
    units: str = ""


FORMATS_BY_BITS = {8: ("mxfp8",), 4: ("mxfp4", "nvfp4")}
KERNELS = ("auto", "emulated", "float8-row")

RECIPES = {
    (recipe.format, recipe.kernel): recipe
    for recipe in (
        Recipe("mxfp8", "auto", "MXTensor", 32, 1, lambda sm: sm >= (10, 0), "SM100 and newer"),
        Recipe("mxfp4", "auto", "MXTensor", 32, 1, lambda sm: sm[0] == 10, "SM100 and SM103"),
        Recipe("nvfp4", "auto", "NVFP4Tensor", 16, 16, lambda sm: sm >= (10, 0), "SM100 and newer"),
        Recipe("mxfp8", "emulated", "MXTensor", 32, 1),
        Recipe("mxfp4", "emulated", "MXTensor", 32, 1),
        Recipe("nvfp4", "emulated", "NVFP4Tensor", 16, 16),
        Recipe("float8", "float8-row", "Float8Tensor", 16, 16, lambda sm: sm >= (8, 9), "SM89 and newer"),
    )
}


def recipe_for(bits: int, kernel: str, format: str | None) -> Recipe:
    """Return the recipe of the arguments of `apply_mx`, where "cutlass" means "auto"."""
    if kernel == "triton":
        raise NotImplementedError(
            "kernel 'triton': torchao 0.18 has no Triton kernel that multiplies MX formats; expected one of "
            f"{', '.join(KERNELS)}"
        )
    kernel = "auto" if kernel == "cutlass" else kernel
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r} is unknown; expected one of {', '.join(KERNELS)}")
    if bits not in FORMATS_BY_BITS:
        raise ValueError(f"bits is {bits!r}; expected 8 or 4")
    formats = FORMATS_BY_BITS[bits]
    if format is not None and format not in formats:
        raise ValueError(f"format {format!r} with bits={bits}; expected {' or '.join(formats)}")
    if kernel == "float8-row":
        if bits != 8 or format is not None:
            raise ValueError(f"kernel 'float8-row' with bits={bits}, format={format!r}; expected bits=8 and no format")
        return RECIPES["float8", kernel]
    return RECIPES[format or formats[0], kernel]
