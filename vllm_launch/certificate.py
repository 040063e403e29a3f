"""The certificate of this machine's GPU: the decoder that `fp8-sinks certify` found right and fastest."""

from typing import Literal


def decoder() -> Literal["lowp", "flashinfer"] | None:
    """The certified decoder, None without a valid certificate. Stand-in: there is no `fp8-sinks certify` yet."""
    return None
