"""Choose a server's decoder, and name the variables that tell our plugin of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flashinfer_patches.errors import Problem
from vllm_launch.decoder.contract import DECODER, INT8, KV_FORMAT, KV_SCALES, RECORD
from vllm_launch.profile import Decoder, Profile

BACKEND = "CUSTOM"  # vLLM's name of a backend from a plugin
VARIABLES = (DECODER, KV_FORMAT, KV_SCALES, RECORD)


class Choice(NamedTuple):
    decoder: Decoder
    reason: str


def choose(profile: Profile, family: str, certified: Callable[[], Decoder | None]) -> Choice:
    """The decoder of a profile on a device family, and why. certified: returns that of this GPU's certificate."""
    requested = profile.requested_decoder(family)
    if family == "cpu":
        return Choice("stock", "a CPU has no other")
    if requested != "certified":
        return Choice(requested, f"the profile's choice on {family}")
    winner = certified()
    if winner is None:
        return Choice("stock", "this GPU has no valid certificate; to make one: fp8-sinks certify")
    return Choice(winner, "this GPU's certificate names it")


def kv_format(family: str, decoder: Decoder, kv_cache_dtype: str, stored: str) -> str | None:
    """The name of a server's KV format, as our plugin records it; None where vLLM serves it by itself.

    stored: the profile's `kv_format`.
    """
    of_fp8 = "int8-static" if stored == "int8" else "e4m3"
    names = {INT8: "int8", "fp8": of_fp8, "fp8_e4m3": of_fp8}
    if family == "cpu":
        names |= {"fp8_e5m2": "e5m2"}
    elif decoder != "stock":
        names |= {"auto": "bf16", "bfloat16": "bf16"}
    elif of_fp8 == "e4m3":
        names = {INT8: "int8"}
    return names.get(kv_cache_dtype)


def environment(
    family: str, decoder: Decoder, kv_format: str | None, kv_scales: str | None, record: str
) -> dict[str, str]:
    """The variables of a server that tell our plugin what to do; none for stock, but for static int8 on a CPU.

    record: the file that the plugin writes.
    """
    static = {KV_FORMAT: "int8"} if kv_format == "int8-static" else {}
    if decoder == "stock" and not (static and family == "cpu"):
        return {}
    ours = {DECODER: decoder, RECORD: record} if decoder != "stock" else {}
    return ours | static | ({KV_SCALES: kv_scales} if kv_scales else {})


def scales_hash(path: str | None) -> str | None:
    """The sha256 of a scale file, None without one; raises Problem("file") if it cannot be read."""
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        message = f"kv_scales: cannot read {path}: {error.strerror}"
        remedy = "name a readable file, or make one: fp8-sinks scales calibrate"
        raise Problem("file", message, remedy) from error
