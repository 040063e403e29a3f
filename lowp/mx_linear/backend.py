"""Import torchao, and make its configurations. No other module of this project imports torchao."""

import logging
from types import SimpleNamespace

import torch

from lowp.mx_linear.recipes import Recipe

NOISY_LOGGERS = ("torchao", "torch.utils._pytree")


def load_torchao() -> SimpleNamespace:
    """Import the names of torchao that are used here, without its warnings about optional libraries.

    Raises ImportError with the remedy.
    """
    levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from torchao.prototype.mx_formats import (
            MXDynamicActivationMXWeightConfig,
            NVFP4DynamicActivationNVFP4WeightConfig,
            NVFP4WeightOnlyConfig,
        )
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
        from torchao.quantization.quantize_.common import KernelPreference
    except ImportError as error:
        raise ImportError(f"MX linears need torchao 0.18: {error}; pip install torchao==0.18.0") from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    return SimpleNamespace(
        quantize_=quantize_,
        MXConfig=MXDynamicActivationMXWeightConfig,
        NVFP4Config=NVFP4DynamicActivationNVFP4WeightConfig,
        NVFP4WeightOnlyConfig=NVFP4WeightOnlyConfig,
        Float8Config=Float8DynamicActivationFloat8WeightConfig,
        PerRow=PerRow,
        KernelPreference=KernelPreference,
    )


def config(torchao: SimpleNamespace, recipe: Recipe) -> object:
    """Return torchao's configuration of a recipe."""
    if recipe.kernel == "float8-row":
        # Without set_inductor_config=False torchao changes inductor's settings for the whole process.
        return torchao.Float8Config(granularity=torchao.PerRow(), set_inductor_config=False)
    if recipe.format == "nvfp4":
        if recipe.kernel == "emulated":
            return torchao.NVFP4WeightOnlyConfig()
        return torchao.NVFP4Config(use_triton_kernel=False)  # its Triton kernel needs the package mslk
    dtype = {"mxfp8": torch.float8_e4m3fn, "mxfp4": torch.float4_e2m1fn_x2}[recipe.format]
    preference = {"auto": torchao.KernelPreference.AUTO, "emulated": torchao.KernelPreference.EMULATED}[recipe.kernel]
    return torchao.MXConfig(activation_dtype=dtype, weight_dtype=dtype, kernel_preference=preference)
