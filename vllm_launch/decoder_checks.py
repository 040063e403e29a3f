"""Check that a decoder that is not stock can run a plan here; raise Problem with a remedy where it cannot."""

from pathlib import Path

from flashinfer_patches import engine, package
from flashinfer_patches.errors import Problem
from vllm_launch import certificate
from vllm_launch.decoder import choice
from vllm_launch.decoder.contract import HEAD_DIMS, KV_CACHE_DTYPES, VLLM_RELEASES
from vllm_launch.plan import Plan

INT8_FORMATS = ("int8", "int8-static")
STOCK = "serve with `decoder: stock`, as profile fp8-stock does"
LARGEST_GROUP = 16  # query heads of a KV head, that decoder lowp takes


def check_gpu(plan: Plan) -> None:
    """A decoder needs a GPU on which its gates passed. A valid certificate may name a faster one."""
    if plan.decoder != "stock" and plan.machine.family != "sm90" and certificate.decoder() is None:
        raise Problem(
            "software",
            f"decoder {plan.decoder} on {plan.machine.name} ({plan.machine.family}): tested on sm90, and this GPU has"
            " no valid certificate",
            f"run: fp8-sinks certify; or {STOCK}",
        )


def check_vllm(plan: Plan) -> None:
    if plan.decoder != "stock" and ".".join(plan.vllm_version.split(".")[:2]) not in VLLM_RELEASES:
        message = f"decoder {plan.decoder} with vLLM {plan.vllm_version}; it runs in vLLM {' and '.join(VLLM_RELEASES)}"
        raise Problem("software", message, f"install a supported vLLM: make setup; or {STOCK}")


def check_heads(plan: Plan) -> None:
    if plan.decoder == "stock":
        return
    served, group = plan.model, plan.model.query_heads // plan.model.kv_heads
    if served.head_dim not in HEAD_DIMS or group > LARGEST_GROUP:
        raise Problem(
            "model",
            f"decoder {plan.decoder}: {served.name} has heads of {served.head_dim} dims, {group} query heads per KV"
            f" head; expected {' or '.join(map(str, HEAD_DIMS))} dims, at most {LARGEST_GROUP} query heads per KV head",
            STOCK,
        )


def check_kv_dtype(plan: Plan) -> None:
    if plan.decoder != "stock" and plan.kv_cache_dtype not in KV_CACHE_DTYPES:
        message = f"--kv-cache-dtype {plan.kv_cache_dtype}: decoder {plan.decoder} does not read it"
        raise Problem("profile", message, f"use one of {', '.join(KV_CACHE_DTYPES)}; or {STOCK}")


def check_int8(plan: Plan) -> None:
    """On a GPU decoder lowp alone reads int8, on a CPU our plugin does."""
    if plan.kv_format not in INT8_FORMATS or plan.device == "cpu" or plan.decoder == "lowp":
        return
    certify = "run: fp8-sinks certify; or " if plan.machine.family != "sm90" else ""
    raise Problem(
        "profile",
        f"KV format {plan.kv_format} needs decoder lowp, got {plan.decoder} ({plan.decoder_reason})",
        f"{certify}write `decoder: lowp`; or serve with profile fp8",
    )


def check_scales(plan: Plan) -> None:
    """A scale file needs a KV format with static scales and a reader, and must be of that format and this model's."""
    is_static_int8 = plan.kv_format == "int8-static"
    if plan.kv_scales is None:
        if is_static_int8:
            message = "KV format int8-static needs `kv_scales`, a scale file for int8"
            make = "fp8-sinks scales calibrate MODEL --kv-format int8 --text FILE --out FILE.safetensors"
            remedy = f"make one: {make}; and add `kv_scales: FILE.safetensors` to the profile"
            raise Problem("profile", message, remedy)
        return
    if not plan.kv_cache_dtype.startswith("fp8"):
        message = f"kv_scales: a KV cache of dtype {plan.kv_cache_dtype} has none"
        raise Problem("profile", message, "take it out of the profile, or write `kv-cache-dtype: fp8`")
    if plan.decoder == "stock" and not is_static_int8:
        message = f"kv_scales: decoder stock does not read them ({plan.decoder_reason})"
        raise Problem("profile", message, "take kv_scales out (`kv_scales: null`), or choose another decoder")
    choice.scales_hash(plan.kv_scales)  # a file that can be read
    from vllm_launch.scales import file  # imports torch

    scales = file.load(plan.kv_scales, plan.model.layers, plan.model.kv_heads)
    file.check_format(scales, plan.kv_scales, "int8" if is_static_int8 else "e4m3")
    file.check_model(scales, plan.kv_scales, Path(plan.model.path) / "config.json")


def check_flashinfer(plan: Plan) -> None:
    if plan.decoder != "flashinfer":
        return
    state = patch_state()
    if state not in ("applied", "superseded"):
        message = f"decoder flashinfer needs a patched FlashInfer; the state of this one: {state}"
        raise Problem("software", message, f"run: make patch; or {STOCK}")


def patch_state() -> str:
    """The state of the installed FlashInfer's files, as flashinfer_patches.state names it, or "not installed"."""
    return engine.status().state if package.installed() else "not installed"


CHECKS = (check_gpu, check_vllm, check_heads, check_kv_dtype, check_int8, check_scales, check_flashinfer)
