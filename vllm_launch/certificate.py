"""The certificate of a GPU: the fastest of the decoders that are right on it."""

from vllm_launch.profile import Decoder


def decoder() -> Decoder | None:
    """The decoder that this GPU's certificate names; None without a valid one. There is no way to make one yet."""
    return None
