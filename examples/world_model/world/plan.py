"""What settings become on a device: formats of each layer, attention backend, MX kernel, compiled or not."""

from dataclasses import asdict, dataclass, replace

import torch

from lowp.mx_linear import Audit, apply_mx
from lowp.mx_linear.checks import check_device
from lowp.mx_linear.recipes import recipe_for
from lowp.static_cache import QuantizedStaticCache, StaticCache
from world.config import Config
from world.model import SKIPPED, WorldModel
from world.settings import BF16, Requested, Settings

SDPA = "sdpa"  # the earlier work's: dequantise, concatenate, SDPA
# By the scales: K and V of storage mxfp in 8 bits, either in 4.
FORMATS_8 = {name: ("e5m2", "e4m3") for name in ("none", "token_head", "ema")} | {"block": ("e5m2", "mxfp8")}
FORMATS_4 = {"token_head": "int4", "ema": "int4", "block": "mxfp4"}


@dataclass(frozen=True)
class Plan:
    """Settings as they run. mx_kernel: None without MX. notices: what differs from the defaults, and why."""

    settings: Settings
    windows: tuple[int, ...]
    k_formats: tuple[str | None, ...]
    v_formats: tuple[str | None, ...]
    k_scale: str
    v_scale: str | tuple[str, ...]
    backend: str
    mx_kernel: str | None
    compiled: bool
    notices: tuple[str, ...]

    def record(self) -> dict:
        return asdict(self)


def make_plan(requested: Requested, config: Config, device: torch.device) -> Plan:
    """Return what runs on a device. Only a default gives way to what the device lacks; what was set is refused."""
    settings, notices = requested.settings, []
    k_formats, v_formats, k_scale, v_scale = formats(settings, config)
    mx_kernel = choose_kernel(settings, "mxfp_kernel" in requested.sources, device, notices)
    compiled = choose_compiled(settings, "compile" in requested.sources, device, notices)
    backend = choose_backend(settings, k_scale, v_scale, device)
    return Plan(
        settings,
        windows(settings, config),
        k_formats,
        v_formats,
        k_scale,
        v_scale,
        backend,
        mx_kernel,
        compiled,
        tuple(notices),
    )


def windows(settings: Settings, config: Config) -> tuple[int, ...]:
    """Return the tokens of each layer's history."""
    local_frames = settings.local_window or config.local_frames
    frames = [config.global_frames if config.is_global(layer) else local_frames for layer in range(config.layers)]
    return tuple(config.frame_tokens * count for count in frames)


def formats(settings: Settings, config: Config) -> tuple[tuple, tuple, str, str | tuple[str, ...]]:
    """Return the formats of K and V by layer (None: not quantised), the scales of K, and those of V."""
    layers = config.layers
    if not settings.fp8_kv or settings.kv_storage == "bf16":
        return (None,) * layers, (None,) * layers, "none", "none"
    v_scale = settings.v_scale or default_scale(settings, settings.kv_bits)
    k_scale = settings.k_scale or default_scale(settings, settings.kv_bits)
    k_format = settings.k_fmt or format_of(settings, settings.kv_bits, k_scale, 0)
    k_formats = (k_format if settings.k_fp8 else None,) * layers
    v_formats = (settings.v_fmt or format_of(settings, settings.kv_bits, v_scale, 1),) * layers
    if late := settings.kv_mixed:
        check_layers("kv_mixed", late, layers)
        late_scale = default_scale(settings, 4)
        v_formats = v_formats[late:] + (format_of(settings, 4, late_scale, 1),) * late
        v_scale = (v_scale,) * (layers - late) + (late_scale,) * late
    return k_formats, v_formats, k_scale, v_scale


def default_scale(settings: Settings, bits: int) -> str:
    if settings.kv_storage == "i8_scale":
        return "token_head"
    return "block" if bits == 4 else "none"


def format_of(settings: Settings, bits: int, scale: str, side: int) -> str:
    """Return the format of K (side 0) or V (side 1) of a storage."""
    if settings.kv_storage == "i8_scale":
        return "int8"
    if bits == 8:
        return FORMATS_8[scale][side]
    if scale not in FORMATS_4:
        raise ValueError(f"4 bits with scales {scale}; expected {', '.join(FORMATS_4)}")
    return FORMATS_4[scale]


def check_layers(name: str, number: int, layers: int) -> None:
    if number > layers:
        raise ValueError(f"{name} is {number}; expected 0 to {layers}, the number of layers")


def choose_backend(settings: Settings, k_scale: str, v_scale: str | tuple, device: torch.device) -> str:
    if settings.attn_sdpa_decode:
        return SDPA
    if settings.attn_backend is not None:
        return settings.attn_backend
    if settings.kv_tail_only or device.type != "cuda":
        return "reference"
    # FlexAttention has scales of keys by token and head, and none of V's by token.
    return "flex" if v_scale == "none" and k_scale != "block" else "triton"


def choose_kernel(settings: Settings, is_set: bool, device: torch.device, notices: list[str]) -> str | None:
    if not settings.mxfp_enable:
        return None
    kernel = settings.mxfp_kernel
    if kernel != "auto" or is_set:
        return kernel
    try:
        check_device(device, recipe_for(settings.mxfp_bits, kernel, settings.mxfp_format))
    except NotImplementedError as error:
        has_row = settings.mxfp_bits == 8 and device.type == "cuda"
        has_row = has_row and torch.cuda.get_device_capability(device) >= (8, 9)
        kernel = "float8-row" if has_row else "emulated"
        notices.append(f"linear layers run as {kernel}: {error}")
    return kernel


def choose_compiled(settings: Settings, is_set: bool, device: torch.device, notices: list[str]) -> bool:
    if not settings.compile or device.type == "cuda":
        return settings.compile
    if not is_set:
        notices.append("not compiled: on a CPU that takes longer than the rollout")
        return False
    if settings.mxfp_enable:
        raise ValueError("compile with mxfp_enable on a CPU: torch has no compiled MX there; expected one of them")
    return True


def make_cache(plan: Plan, config: Config, batch: int, dtype: torch.dtype, device: torch.device) -> StaticCache:
    settings, timed = plan.settings, plan.settings.profile_kv
    shape = (config.layers, batch, config.heads, config.head_dim, config.frame_tokens, plan.windows, dtype, device)
    if not settings.fp8_kv and not settings.kv_tail_only:
        return StaticCache(*shape, timed=timed)
    return QuantizedStaticCache(
        *shape,
        k_format=plan.k_formats,
        v_format=plan.v_formats,
        k_scale=plan.k_scale,
        v_scale=plan.v_scale,
        v_percentile=settings.v_percentile,
        kv_late_layers=settings.kv_late_layers if settings.fp8_kv else 0,
        tail_only=min(plan.windows) if settings.kv_tail_only else None,
        timed=timed,
    )


def transform(plan: Plan, model: WorldModel) -> Audit | None:
    """Convert the model's linear layers in place; return the audit, None without MX."""
    settings = plan.settings
    if not settings.mxfp_enable:
        return None
    return apply_mx(
        model,
        bits=settings.mxfp_bits,
        scope=settings.mxfp_scope,
        kernel=plan.mx_kernel,
        late_layers=settings.mxfp_late_layers,
        skip=SKIPPED if settings.mxfp_scope == "all" else (),
        format=settings.mxfp_format if plan.mx_kernel != "float8-row" else None,
    )


def bf16_request(requested: Requested) -> Requested:
    """Return the BF16 rollout to compare with: nothing quantised, compiled or not as requested."""
    settings = replace(BF16, compile=requested.settings.compile, local_window=requested.settings.local_window)
    sources = {name: source for name, source in requested.sources.items() if name in ("compile", "local_window")}
    return Requested(settings, sources)
