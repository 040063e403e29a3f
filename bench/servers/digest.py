"""What a profile's measurements depend on: saved with its steps, and compared before any of them is read or added."""

import hashlib
import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.record.files import write_text
from bench.servers.client import Endpoint
from bench.suite import Suite
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from vllm_launch import provenance, redaction
from vllm_launch.decoder import choice, contract
from vllm_launch.machine import Machine
from vllm_launch.marks import NONCE_VARIABLE
from vllm_launch.model import Model
from vllm_launch.plan import CACHE_VARIABLES, Plan

FILE = "digest.json"  # in a profile's folder
# Variables that differ from run to run: paths of caches, a nonce, a file named by it.
PER_RUN = (*CACHE_VARIABLES, NONCE_VARIABLE, contract.RECORD)
DIGEST = TypeAdapter(dict[str, str])
SHOWN = 3  # differences in a message


def compute(plan: Plan, suite: Suite) -> dict[str, str]:
    """Every setting, version and file that a profile's steps depend on, by name; `plan` is that of a warm start.

    Left out: what differs from start to start, the depths of the grid, which have a step each, and the reference and
    the thresholds, by which saved figures can be judged again.
    """
    digest = {f"argument {name}": value for name, value in plan.arguments.items()}
    digest |= {f"variable {name}": value for name, value in plan.environment.items() if name not in PER_RUN}
    digest |= {f"inherited {name}": value for name, value in provenance.inherited(plan).items()}
    digest |= {"FlashInfer patch set": provenance.patch(), "attention backends": plan.expected_backends}
    digest |= {"KV scales": scales} if (scales := choice.scales_hash(plan.kv_scales)) else {}
    return _as_texts(digest | _of_run(plan.machine, plan.model, suite), plan.model)


def of_external(
    endpoint: Endpoint, settings: dict[str, str], model: Model, machine: Machine, suite: Suite
) -> dict[str, str]:
    """What is known of an external server, and what a run measures there, by name. settings: that it states."""
    served = {"served model": endpoint.model, "context of the server": endpoint.context}
    served |= {f"server's {name}": value for name, value in settings.items()}
    return _as_texts(served | _of_run(machine, model, suite), model)


def _of_run(machine: Machine, model: Model, suite: Suite) -> dict:
    return {
        **{f"version of {name}": value for name, value in provenance.versions().items()},
        "commit": provenance.code_state(),
        "machine": [machine.family, machine.name, machine.gpus, machine.driver, machine.cores],
        "grid": suite.grid.model_dump(exclude={"depth"}),
        "texts": suite.texts.model_dump(),
        "greedy": suite.greedy.model_dump(exclude={"reference"}),
        "model": model.name,
    }


def _as_texts(digest: dict, model: Model) -> dict[str, str]:
    return {name: _text(value) for name, value in (redaction.redact_all(digest) | _files(model)).items()}


def check(folder: Path, digest: dict[str, str]) -> None:
    """Raise Problem("file") where the steps in a profile's folder have another digest, or none."""
    path = folder / FILE
    if not path.exists():
        if any(not step.name.startswith(".") for step in folder.glob("*.json*")):  # a dot: only partly written
            raise _refused(folder, f"no {FILE}")
        return
    try:
        saved = DIGEST.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _refused(folder, f"{FILE} is unreadable") from error
    changed = [name for name in saved | digest if saved.get(name) != digest.get(name)]
    if changed:
        words = [f"{name} {saved.get(name, 'absent')}, now {digest.get(name, 'absent')}" for name in changed[:SHOWN]]
        suffix = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise _refused(folder, "; ".join(words) + suffix)


def guard(folder: Path, digest: dict[str, str]) -> None:
    """check(), and save the digest before the folder's first step; raises Problem("disk")."""
    check(folder, digest)
    with writing(folder):
        folder.mkdir(exist_ok=True)
        if not (folder / FILE).exists():
            write_text(DIGEST.dump_json(digest, indent=1).decode() + "\n", folder / FILE)


def _refused(folder: Path, reason: str) -> Problem:
    return Problem(
        "file",
        f"cannot resume the steps in {folder}: {reason}",
        "restore what they were measured with, or start a new run: another --run-dir",
    )


def _files(model: Model) -> dict[str, str]:
    """The model's files: hashes of the small ones, size and time of the weights."""
    files = {}
    try:
        for path in sorted(Path(model.path).iterdir()):
            if path.suffix == ".safetensors":
                status = path.stat()
                files[f"weights {path.name}"] = f"{status.st_size} bytes of {status.st_mtime_ns}"
            elif path.suffix in (".json", ".jsonl") and path.is_file():
                files[f"file {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise Problem(
            "model", f"cannot read {error.filename}: {error.strerror}", "make the model's files readable"
        ) from error
    return files


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
