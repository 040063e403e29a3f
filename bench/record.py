"""What results of every kind have in common."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from vllm_launch.machine import Machine

SCHEMA_VERSION = 1
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Plain data: unknown keys are errors, every number is finite, and nothing changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Provenance(Strict):
    """Where and how a result was made; paths are replaced by $REPO, $ENV, ~ and $TMP, and no host is named.

    git_dirty: None where git could not tell. environment: inherited variables that change what a server does.
    load_average: of the machine over the minute before the run, None in results that did not record it.
    """

    created: datetime
    machine: Machine
    versions: dict[str, str]
    patch: Annotated[str, Field(description="'none', the id of FlashInfer's patch set, or its state if neither")]
    git_commit: str | None
    git_dirty: bool | None
    command: list[str]
    environment: dict[str, str] = {}
    load_average: NotNegative | None = None


class Wiped(Strict):
    """What emptying this run's JIT caches removed before a cold start."""

    files: int
    bytes: int
