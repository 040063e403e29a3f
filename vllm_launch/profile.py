"""Profiles: what to serve and how, as YAML. A profile holds the request; `resolved` holds what vLLM made of it."""

import re
from functools import reduce
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Count, Strict
from vllm_launch import yaml_file
from vllm_launch.yaml_file import Library

FOLDER = Path(__file__).resolve().parent / "profiles"
LIBRARY = Library("profile", FOLDER, "baseline")
# A profile's name is that of its folder in a run, next to these and to files with these suffixes.
PLAIN_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RUN_NAMES = re.compile(r"cache|plots|.*\.(json|md|log|gz)")
SUITE_KEYS = {"greedy", "bench", "accuracy", "thresholds"}  # of profiles before benches had suites

Device = Literal["cpu", "gpu"]
Decoder = Literal["stock", "lowp", "flashinfer"]
DecoderRequest = Literal["stock", "lowp", "flashinfer", "certified"]
Argument = bool | int | float | str | list[str] | dict
Backends = Annotated[list[str], Field(min_length=1)]


class DeviceSettings(Strict):
    default_model: str
    start_timeout_s: Count
    vllm: dict[str, Argument]
    env: dict[str, str]


class ModelSettings(Strict):
    vllm: dict[str, Argument]


class Profile(Strict):
    """lineage: the names of the profile and of those it extends, its own first.

    decoder: who computes decode attention, on every GPU or by family, `other` for the rest. "certified": the decoder of
    this GPU's certificate, stock without one. kv_format: what a KV cache of dtype fp8 stores. kv_scales: the path of a
    scale file.
    """

    name: str
    lineage: list[str]
    description: str
    vllm: dict[str, Argument]
    decoder: DecoderRequest | dict[str, DecoderRequest] = "stock"
    kv_format: Literal["e4m3", "int8"] = "e4m3"
    kv_scales: str | None = None
    devices: dict[Device, DeviceSettings]
    backends: dict[str, Backends | dict[str, Backends]]
    models: dict[str, ModelSettings]

    @field_validator("models")
    @classmethod
    def _settings_for_every_model(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        if "other" not in models:
            raise ValueError("needs an entry `other`, for every model that is not named")
        return models

    @field_validator("decoder")
    @classmethod
    def _no_decoder_for_a_cpu(cls, decoder):
        if isinstance(decoder, dict) and "cpu" in decoder:
            raise ValueError("has an entry for cpu, where the decoder is always stock")
        return decoder

    def device_settings(self, device: Device) -> DeviceSettings:
        """Raises Problem("profile") where the profile is not for `device`."""
        if device not in self.devices:
            raise Problem(
                "profile",
                f"profile {self.name} has no entry for {device} under `devices`",
                f"it is for {', '.join(self.devices) or 'nothing'}; add one, or write `extends: baseline`",
            )
        return self.devices[device]

    def model_settings(self, model_name: str) -> ModelSettings:
        return self.models.get(model_name, self.models["other"])

    def requested_decoder(self, family: str) -> DecoderRequest:
        """The decoder requested on a device family; always stock on a CPU."""
        if family == "cpu":
            return "stock"
        if isinstance(self.decoder, dict):
            return self.decoder.get(family, self.decoder.get("other", "stock"))
        return self.decoder

    def expected_backends(self, family: str, vllm_version: str) -> list[str]:
        """The attention backends accepted on a GPU family with decoder stock.

        Raises Problem("profile") where none is named.
        """
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
    return LIBRARY.names


def load(name: str) -> Profile:
    """Read a profile by name, or from a path that ends in .yaml; its name is the file's. Raises Problem("profile").

    A relative path in `kv_scales` is relative to the file that names it.
    """
    path = yaml_file.find(LIBRARY, name)
    if not PLAIN_NAME.fullmatch(path.stem) or RUN_NAMES.fullmatch(path.stem):
        raise Problem(
            "profile",
            f"{path.name}: no profile can have that name",
            "rename the file: letters, digits and . _ - inside; not cache, plots, or as a file of a run",
        )
    _check_not_shipped_name(path)
    layers = yaml_file.layers(LIBRARY, path)
    for layer_path, content in layers:
        _check_not_shipped_name(layer_path)
        if isinstance(content.get("kv_scales"), str):
            content["kv_scales"] = str(layer_path.parent.absolute() / content["kv_scales"])
    content = reduce(yaml_file.merged, (content for _, content in layers), {})
    _check_keys(path, content)
    content |= {"name": path.stem, "lineage": [layer_path.stem for layer_path, _ in reversed(layers)]}
    return yaml_file.validated(LIBRARY, path, Profile, content)


def _check_not_shipped_name(path: Path) -> None:
    """Raise Problem("profile") for a user's file with the name of ours: suites know profiles by name."""
    if path.stem in names() and path.resolve() != FOLDER / f"{path.stem}.yaml":
        message = f"{path} has the name of a profile of fp8-sinks"
        raise Problem("profile", message, f"rename the file, such as my-{path.name}")


def _check_keys(path: Path, content: dict) -> None:
    if "lineage" in content:
        raise Problem("profile", f"{path.name}: `lineage` is no key of a profile", "take it out: `extends` says it")
    models = content.get("models")
    maps = [content, *(models.values() if isinstance(models, dict) else ())]
    moved = sorted({key for entry in maps if isinstance(entry, dict) for key in SUITE_KEYS & entry.keys()})
    if moved:
        raise Problem(
            "profile",
            f"{path.name}: {', '.join(f'`{key}`' for key in moved)} belongs in a suite, not in a profile",
            "move it to a file like bench/suites/default.yaml (`bench` is `grid` there, `accuracy` is `texts`, `at` is"
            " `contexts`), and run the bench with --suite FILE",
        )
