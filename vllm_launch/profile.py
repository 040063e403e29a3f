"""Profiles: what to serve and how, as YAML. A profile says what was asked; `resolved` says what came of it."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_launch.errors import Problem

FOLDER = Path(__file__).resolve().parent / "profiles"

Device = Literal["cpu", "gpu"]
Argument = bool | int | float | str | list[str] | dict
Count = Annotated[int, Field(ge=1)]
Depth = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """Plain data: unknown keys are errors, every number is finite, and nothing changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BenchGrid(Strict):
    """What llama-benchy measures: token counts of context depth, prompt and output; requests at once; repeats."""

    prompt: list[Count]
    output: list[Count]
    depth: list[Depth]
    concurrency: list[Count]
    runs: Count


class Texts(Strict):
    """`texts` pieces of text: `context` tokens of prompt, then `tokens` tokens that are scored.

    prefill: whether the server also returns prompt log-probabilities here; with long prompts they are slow, since
    vLLM has them for the whole prompt or not at all.
    """

    context: Count
    texts: Count
    tokens: Count
    prefill: bool = True


class AccuracyTexts(Strict):
    """What to score. source: the model's own heldout.jsonl, or the book that llama-benchy's prompts come from."""

    source: Literal["heldout", "book"]
    at: Annotated[list[Texts], Field(min_length=1)]

    @property
    def tokens(self) -> int:
        return sum(one.texts * one.tokens for one in self.at)

    @property
    def shortest_prefill(self) -> int | None:
        """The shortest context whose texts are scored by prefill too."""
        return min((one.context for one in self.at if one.prefill), default=None)


class Bounds(Strict):
    """Bounds on bench.result.Agreement, in its units. top1 is the least, all others the most; None: not judged.

    perplexity_ratio bounds the ratio and its inverse.
    """

    mean_abs_delta: Positive | None = None
    p99_abs_delta: Positive | None = None
    kl: Positive | None = None
    top1: Annotated[float, Field(ge=0, le=1)] | None = None
    perplexity_ratio: Annotated[float, Field(ge=1)] | None = None


class SinkBounds(Strict):
    """mean_abs_delta: the most (nats) between server and transformers with the true sinks.

    factor: how many times farther the nearest wrong sinks must be. None: not judged.
    """

    mean_abs_delta: Positive | None = None
    factor: Annotated[float, Field(ge=1)] | None = None


class Thresholds(Strict):
    """The accuracy gates of a profile with a model. What is not given is measured but not judged.

    decode, prefill: against the reference profile, over all contexts; decode_at_context: at each single one. paths:
    decode against the same server's prefill, which no cache format disturbs. sinks: against transformers.
    """

    decode: Bounds = Bounds()
    decode_at_context: Bounds = Bounds()
    prefill: Bounds = Bounds()
    paths: Bounds = Bounds()
    sinks: SinkBounds = SinkBounds()


class DeviceSettings(Strict):
    default_model: str
    start_timeout_s: Count
    vllm: dict[str, Argument]
    env: dict[str, str]


class ModelSettings(Strict):
    vllm: dict[str, Argument]
    bench: BenchGrid
    accuracy: AccuracyTexts
    thresholds: Thresholds = Thresholds()


class GreedyGate(Strict):
    """Greedy answers of `tokens` tokens; passed if more than `min_match` of them equal the reference profile's."""

    reference: str
    prompts: list[str]
    tokens: Count
    min_match: Annotated[float, Field(ge=0, lt=1)]
    min_distinct: Count


class Profile(Strict):
    name: str
    description: str
    vllm: dict[str, Argument]
    devices: dict[Device, DeviceSettings]
    backends: dict[str, list[str] | dict[str, list[str]]]
    models: dict[str, ModelSettings]
    greedy: GreedyGate

    def model_settings(self, model_name: str) -> ModelSettings:
        return self.models.get(model_name, self.models["other"])

    def expected_backends(self, family: str, vllm_version: str) -> list[str]:
        """The backends that this profile accepts on a GPU family; raises Problem("profile") where it names none."""
        entry = self.backends.get(family)
        if isinstance(entry, dict):
            entry = entry.get(".".join(vllm_version.split(".")[:2]))
        if entry is None:
            raise Problem(
                "profile",
                f"profile {self.name} names no attention backend for {family} with vLLM {vllm_version}",
                f"known: {', '.join(self.backends)}; add yours under `backends` in the profile",
            )
        return entry


def names() -> list[str]:
    """The profiles that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Profile:
    """Read a profile by name, or from a path that ends in .yaml. Raises Problem("profile")."""
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    try:
        return Profile.model_validate({"name": path.stem, **_read(path, seen=())})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Problem(
            "profile",
            f"{path.name}: {where}: {first['msg']} (got {str(first['input'])[:60]!r})",
            f"keys and types as in {FOLDER.name}/baseline.yaml",
        ) from error


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    if path in seen:
        raise Problem("profile", f"{path.name} extends itself", "let `extends` end at a profile without it")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Problem(
            "profile", f"no profile {path.stem!r}", f"known: {', '.join(names())}; or give a path ending in .yaml"
        ) from error
    except (OSError, yaml.YAMLError) as error:
        raise Problem("profile", f"cannot read {path}: {' '.join(str(error).split())}", "mend the file") from error
    if not isinstance(content, dict):
        raise Problem("profile", f"{path.name} is not a map of keys", "start from profiles/baseline.yaml")
    base = content.pop("extends", None)
    if base is None:
        return content
    parent = FOLDER / f"{base}.yaml" if not str(base).endswith(".yaml") else path.parent / base
    return _merged(_read(parent, (*seen, path)), content)


def _merged(base: dict, over: dict) -> dict:
    """`over` laid on `base`, map by map."""
    merged = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both_maps else value
    return merged
