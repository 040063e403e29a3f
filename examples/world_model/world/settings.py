"""The settings of a rollout: defaults, under a YAML file's, under those of environment variables OWL_<NAME>."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from lowp.formats import FORMATS

PREFIX = "OWL_"
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
SCALES = ("none", "token_head", "ema", "block")
CHOICES = {
    "mxfp_bits": (8, 4),
    "mxfp_scope": ("mlp", "attn", "all"),
    "mxfp_kernel": ("auto", "emulated", "float8-row", "cutlass", "triton"),
    "mxfp_format": ("mxfp8", "mxfp4", "nvfp4"),
    "kv_storage": ("mxfp", "i8_scale", "bf16"),
    "kv_bits": (8, 4),
    "k_fmt": tuple(FORMATS),
    "v_fmt": tuple(FORMATS),
    "k_scale": SCALES,
    "v_scale": SCALES,
}


@dataclass(frozen=True)
class Settings:
    """The recommended profile. None: chosen from the other settings, or from the model.

    Names of the earlier work: mxfp_* choose the linear layers (`lowp.mx_linear.apply_mx`); fp8_kv quantises V in the
    last kv_late_layers layers (0: all), k_fp8 K too; kv_storage and kv_bits choose the formats; kv_tail_only
    dequantises the local window of a global layer alone; attn_sdpa_decode dequantises, concatenates and calls SDPA;
    profile_kv records the cache's statistics at the first profile_kv_first frames and at every profile_kv_every-th.

    Names of ours: mxfp_format (nvfp4 for 4 bits); k_fmt, v_fmt, k_scale, v_scale in place of those that follow from
    kv_storage and kv_bits; v_percentile clips V; kv_mixed stores V in 4 bits in the last N layers, 8 elsewhere;
    attn_backend of `lowp.static_cache.attend`; local_window in frames.
    """

    mxfp_enable: bool = True
    mxfp_bits: int = 8
    mxfp_scope: str = "all"
    mxfp_kernel: str = "auto"
    mxfp_late_layers: int = 0
    mxfp_list: bool = False
    fp8_kv: bool = True
    k_fp8: bool = False
    kv_late_layers: int = 12
    kv_storage: str = "mxfp"
    kv_bits: int = 8
    kv_tail_only: bool = False
    attn_sdpa_decode: bool = False
    compile: bool = True
    profile_kv: bool = False
    profile_kv_every: int = 16
    profile_kv_first: int = 4
    mxfp_format: str | None = None
    k_fmt: str | None = None
    v_fmt: str | None = None
    k_scale: str | None = None
    v_scale: str | None = None
    v_percentile: float = 100.0
    kv_mixed: int = 0
    attn_backend: str | None = None
    local_window: int | None = None


@dataclass(frozen=True)
class Requested:
    """Settings, and where each that is not a default is from: a file's name, or an environment variable's."""

    settings: Settings = field(default_factory=Settings)
    sources: Mapping[str, str] = field(default_factory=dict)


KINDS = {each.name: each.type for each in fields(Settings)}
BF16 = Settings(mxfp_enable=False, fp8_kv=False)


def request(path: Path | None, environment: Mapping[str, str]) -> Requested:
    """Return the settings of a file and of the environment, which goes over the file. Raises ValueError."""
    values, sources = {}, {}
    if path is not None:
        values = read(path)
        sources = dict.fromkeys(values, path.name)
    for name in KINDS:
        variable = PREFIX + name.upper()
        if variable in environment:
            values[name], sources[name] = parse(environment[variable], name, variable), variable
    known = {PREFIX + name.upper() for name in KINDS}
    check_names([name for name in environment if name.startswith(PREFIX)], known, "the environment")
    return from_values(values, sources)


def from_values(values: Mapping[str, object], sources: Mapping[str, str] | None = None) -> Requested:
    """Return checked settings of plain values; the others are defaults. Raises ValueError."""
    sources = dict.fromkeys(values, "caller") if sources is None else sources
    check_names(values, KINDS, "the settings")
    for name, value in values.items():
        check_value(name, value, sources[name])
    settings = Settings(**values)
    check_together(settings)
    return Requested(settings, sources)


def read(path: Path) -> dict[str, object]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is missing or not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected keys and values")
    check_names(map(str, values), KINDS, str(path))
    return values


def check_names(names, known, source: str) -> None:
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(sorted(known))}"
        raise ValueError(f"{source} has the unknown key {', '.join(unknown)}; {hint}")


def parse(text: str, name: str, variable: str) -> object:
    """Return the value of an environment variable's text, by the setting's type."""
    kind, text = KINDS[name], text.strip()
    if kind is bool:
        if text.lower() not in TRUE + FALSE:
            raise ValueError(f"{variable} is {text!r}; expected one of {', '.join(TRUE + FALSE)}")
        return text.lower() in TRUE
    if kind is not str and text.lower() in ("", "none") and "None" in str(kind):
        return None
    if kind in (str, str | None):
        return text
    number = float if kind is float else int
    try:
        return number(text)
    except ValueError as error:
        raise ValueError(f"{variable} is {text!r}; expected a number ({number.__name__})") from error


def check_value(name: str, value: object, source: str) -> None:
    """Check a value's type and range. An int is a float too; a bool is no int."""
    kind = KINDS[name]
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        kind_name = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{name} is {value!r} ({source}); expected {kind_name}")
    if value is not None and name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name} is {value!r} ({source}); expected one of {', '.join(map(str, CHOICES[name]))}")
    least = 1 if name in ("profile_kv_every", "local_window") else 0
    if isinstance(value, int | float) and not value >= least:
        raise ValueError(f"{name} is {value!r} ({source}); expected at least {least}")


def check_together(settings: Settings) -> None:
    """Refuse settings that contradict each other. What a disabled part would use is not read."""
    if settings.kv_storage != "mxfp" and (settings.kv_bits == 4 or settings.kv_mixed):
        raise ValueError(f"4 bits of KV with kv_storage {settings.kv_storage}; expected kv_storage mxfp")
    if settings.k_fp8 and not settings.fp8_kv:
        raise ValueError("k_fp8 is set and fp8_kv is not; expected both or neither")
    if settings.attn_sdpa_decode and settings.attn_backend is not None:
        raise ValueError(f"attn_backend is {settings.attn_backend} with attn_sdpa_decode, which has none of them")
    if settings.kv_mixed and settings.kv_bits == 4:
        raise ValueError("kv_mixed has 8 bits in the early layers; expected kv_bits 8")
