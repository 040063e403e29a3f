"""What results of every kind have in common."""

from flashinfer_patches.strict import Strict

SCHEMA_VERSION = 1


class Wiped(Strict):
    """What was removed from a run's JIT caches before a cold start."""

    files: int
    bytes: int
