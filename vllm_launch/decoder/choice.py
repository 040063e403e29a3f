"""Choose a server's decoder, and name the variables that tell our plugin of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flashinfer_patches.errors import Problem
from vllm_launch.decoder.contract import DECODER, KV_SCALES, RECORD
from vllm_launch.profile import Decoder, Profile

BACKEND = "CUSTOM"  # vLLM's name of a backend from a plugin
VARIABLES = (DECODER, KV_SCALES, RECORD)


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


def environment(decoder: Decoder, kv_scales: str | None, record: str) -> dict[str, str]:
    """The variables of a server with this decoder; none for stock. record: the file that the plugin writes."""
    if decoder == "stock":
        return {}
    return {DECODER: decoder, RECORD: record} | ({KV_SCALES: kv_scales} if kv_scales else {})


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
