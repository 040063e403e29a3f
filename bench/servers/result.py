"""What a result records of a server: its request, its starts, its failures."""

from typing import Annotated, Literal

from pydantic import Field

from flashinfer_patches.strict import NotNegative, Positive, Strict
from vllm_launch.profile import Argument


class Requested(Strict):
    """The request to vLLM: the server's command line and the environment added to the caller's, as executed.

    command: empty where no server was started.
    """

    kv_cache_dtype: str
    attention_backends: list[str]
    arguments: dict[str, Argument]
    command: list[str]
    environment: dict[str, str]


RESOLVED_FIGURES = ("kv_capacity_tokens",)  # no settings


class Start(Strict):
    """One start of the server, in seconds. cold: on empty caches; scored: with our token forcer, in a serving run after
    a cold start, in an accuracy run on empty caches at first.

    command: as executed; empty in results that did not record it. load_average: of the machine over the minute before
    the start. cached_files: in the run's caches after the first token; where a cold start leaves none, no warm start
    is made.
    """

    cache: Literal["cold", "warm", "scored"]
    start_s: Positive
    first_token_s: Positive
    command: list[str] = Field(default_factory=list)
    load_average: NotNegative | None = None
    cached_files: Annotated[int, Field(ge=0)] | None = None


class FailedStep(Strict):
    step: str
    message: str
