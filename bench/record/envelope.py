"""What results of every kind have in common."""

from typing import Literal

from flashinfer_patches.strict import Record, Strict
from vllm_launch.provenance import Provenance

SCHEMA_VERSION = 1


class Envelope(Record):
    """The fields of every result, beside its `kind` and what it measures."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    provenance: Provenance


class Wiped(Strict):
    """What was removed from a run's JIT caches before a cold start."""

    files: int
    bytes: int
