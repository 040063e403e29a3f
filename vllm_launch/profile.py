"""Profiles: what to serve and how, as YAML. A profile says what was asked; `resolved` says what came of it."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Count, Positive, Strict

FOLDER = Path(__file__).resolve().parent / "profiles"
# A profile's name is that of its folder in a run, beside these and beside files that end so.
PLAIN_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RUN_NAMES = re.compile(r"cache|plots|.*\.(json|md|log|gz)")

Device = Literal["cpu", "gpu"]
Argument = bool | int | float | str | list[str] | dict
Depth = Annotated[int, Field(ge=0)]
Backends = Annotated[list[str], Field(min_length=1)]
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class BenchGrid(Strict):
    """What llama-benchy measures: token counts of context depth, prompt and output; requests at once; repeats."""

    prompt: Annotated[list[Count], Field(min_length=1)]
    output: Annotated[list[Count], Field(min_length=1)]
    depth: Annotated[list[Depth], Field(min_length=1)]
    concurrency: Annotated[list[Count], Field(min_length=1)]
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
    perplexity_ratio: AtLeastOne | None = None


class SinkBounds(Strict):
    """mean_abs_delta: the most (nats) between server and transformers with the true sinks.

    factor: how many times farther the nearest wrong sinks must be. None: not judged.
    """

    mean_abs_delta: Positive | None = None
    factor: AtLeastOne | None = None


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
    """How to serve a model, and how to measure it; a profile for serving alone has neither bench nor accuracy."""

    vllm: dict[str, Argument]
    bench: BenchGrid | None = None
    accuracy: AccuracyTexts | None = None
    thresholds: Thresholds = Thresholds()


class GreedyGate(Strict):
    """Greedy answers of `tokens` tokens; passed if more than `min_match` of them equal the reference profile's."""

    reference: str
    prompts: Annotated[list[str], Field(min_length=1)]
    tokens: Count
    min_match: Annotated[float, Field(ge=0, lt=1)]
    min_distinct: Count


class Profile(Strict):
    name: str
    description: str
    vllm: dict[str, Argument]
    devices: dict[Device, DeviceSettings]
    backends: dict[str, Backends | dict[str, Backends]]
    models: dict[str, ModelSettings]
    greedy: GreedyGate | None = None

    @field_validator("models")
    @classmethod
    def _settings_for_every_model(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        if "other" not in models:
            raise ValueError("needs an entry `other`, for every model that is not named")
        return models

    def device_settings(self, device: Device) -> DeviceSettings:
        """Raises Problem("profile") where the profile is not for `device`."""
        if device not in self.devices:
            raise Problem(
                "profile",
                f"profile {self.name} has no entry for {device} under `devices`",
                f"it is for {', '.join(self.devices) or 'nothing'}; add one, or write `extends: baseline`",
            )
        return self.devices[device]

    def check_measurable(self, model_name: str) -> None:
        """Raise Problem("profile") for a profile that says how to serve a model, and not how to measure it."""
        settings = self.model_settings(model_name)
        wanted = {"a model's `bench`": settings.bench, "its `accuracy`": settings.accuracy, "`greedy`": self.greedy}
        missing = [name for name, value in wanted.items() if value is None]
        if missing:
            raise Problem(
                "profile",
                f"profile {self.name} can be served, not measured: it lacks {', '.join(missing)}",
                f"add them as in {FOLDER.name}/baseline.yaml, or write `extends: baseline`",
            )

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
    """Read a profile by name, or from a path that ends in .yaml; its name is the file's. Raises Problem("profile")."""
    path = Path(name) if name.endswith(".yaml") else _shipped(name)
    if not PLAIN_NAME.fullmatch(path.stem) or RUN_NAMES.fullmatch(path.stem):
        raise Problem(
            "profile",
            f"{path.name}: no profile can have that name",
            "rename the file: letters, digits and . _ - inside; not cache, plots, or as a file of a run",
        )
    if path.stem in names() and path.resolve() != _shipped(path.stem):
        raise Problem(
            "profile", f"{path} has the name of a profile of fp8-sinks", f"rename the file, such as my-{path.name}"
        )
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


def _shipped(name: str) -> Path:
    if name not in names():
        raise Problem("profile", f"no profile {name!r}", f"known: {', '.join(names())}; or give a path ending in .yaml")
    return FOLDER / f"{name}.yaml"


class _Loader(yaml.SafeLoader):
    """YAML in which no map has a key twice."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return node


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    """A file's content on top of what it extends, without `name` and `extends`."""
    if path.resolve() in seen:
        raise Problem("profile", f"{path.name} extends itself", "let `extends` end at a profile without it")
    content = _content(path)
    if content.pop("name", path.stem) != path.stem:
        raise Problem(
            "profile", f"{path.name}: `name` is not the file's", "take it out: a profile is named by its file"
        )
    greedy = content.get("greedy")
    if isinstance(greedy, dict) and str(greedy.get("reference")).endswith(".yaml"):
        greedy["reference"] = str(path.parent / greedy["reference"])
    base = content.pop("extends", None)
    if base is None:
        return content
    parent = path.parent / base if str(base).endswith(".yaml") else _shipped(base)
    return _merged(_read(parent, (*seen, path.resolve())), content)


def _content(path: Path) -> dict:
    """A YAML file as a map of plain data; raises Problem("profile")."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        text = json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
        if b"\\u0000" in text:
            raise ValueError("a null character, which no word of a command can have")
    except FileNotFoundError as error:
        raise Problem("profile", f"no profile {path}", "give the path of a .yaml file that is there") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Problem("profile", f"cannot read {path}: {' '.join(str(error).split())}", "mend the file") from error
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # dates, bytes, .nan, halves of characters, a map in itself
        what = f"{path.name} holds what is no text, finite number, list or map: {' '.join(str(error).split())}"
        raise Problem("profile", what, "quote it, or take it out") from error
    if not isinstance(content, dict):
        raise Problem("profile", f"{path.name} is not a map of keys", "start from profiles/baseline.yaml")
    return content


def _merged(base: dict, over: dict) -> dict:
    """`over` laid on `base`, map by map."""
    merged = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both_maps else value
    return merged
