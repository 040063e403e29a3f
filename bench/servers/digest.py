"""What a profile's measurements depend on: kept beside its steps, and compared before any of them is read or added."""

import hashlib
import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.record.files import write_text, writing
from flashinfer_patches.errors import Problem
from vllm_launch import provenance, redaction
from vllm_launch.marks import NONCE_VARIABLE
from vllm_launch.model import Model
from vllm_launch.plan import CACHE_VARIABLES, Plan
from vllm_launch.profile import Profile

FILE = "digest.json"  # in a profile's folder
PER_RUN = (*CACHE_VARIABLES, NONCE_VARIABLE)  # variables that differ from run to run: paths of caches, a nonce
DIGEST = TypeAdapter(dict[str, str])
SHOWN = 3  # differences in a message


def of(plan: Plan, profile: Profile) -> dict[str, str]:
    """Every setting, version and file that a step of `profile` depends on, by name; `plan` is that of its warm start.

    Not in it: what each start has of its own, the depths of the grid, which have a step each, and the thresholds, by
    which kept figures can be judged again.
    """
    settings, machine = profile.model_settings(plan.model.name), plan.machine
    digest = {f"argument {name}": value for name, value in plan.arguments.items()}
    digest |= {f"variable {name}": value for name, value in plan.environment.items() if name not in PER_RUN}
    digest |= {f"inherited {name}": value for name, value in provenance.inherited(plan).items()}
    digest |= {f"version of {name}": value for name, value in provenance.versions().items()}
    digest |= {"commit": provenance.code_state()}
    digest |= {"FlashInfer patch set": provenance.patch(), "attention backends": plan.expected_backends}
    digest |= {"machine": [machine.family, machine.name, machine.gpus, machine.driver, machine.cores]}
    digest |= {"bench": settings.bench.model_dump(exclude={"depth"}), "accuracy": settings.accuracy.model_dump()}
    digest |= {"greedy": profile.greedy.model_dump(exclude={"reference"}), "model": plan.model.name}
    return {name: _text(value) for name, value in (redaction.redact_all(digest) | _files(plan.model)).items()}


def check(folder: Path, digest: dict[str, str]) -> None:
    """Raise Problem("file") where the steps in a profile's folder belong to another digest, or to none."""
    path = folder / FILE
    if not path.exists():
        if any(not path.name.startswith(".") for path in folder.glob("*.json*")):  # a dot: not written to its end
            raise _refused(folder, f"no {FILE} that says what they depend on")
        return
    try:
        kept = DIGEST.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _refused(folder, f"a {FILE} that cannot be read") from error
    changed = [name for name in kept | digest if kept.get(name) != digest.get(name)]
    if changed:
        words = [f"{name} {kept.get(name, 'absent')}, now {digest.get(name, 'absent')}" for name in changed[:SHOWN]]
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise _refused(folder, "; ".join(words) + more)


def guard(folder: Path, digest: dict[str, str]) -> None:
    """check(), and keep the digest before the folder's first step; raises Problem("disk")."""
    check(folder, digest)
    with writing(folder):
        folder.mkdir(exist_ok=True)
        if not (folder / FILE).exists():
            write_text(DIGEST.dump_json(digest, indent=1).decode() + "\n", folder / FILE)


def _refused(folder: Path, reason: str) -> Problem:
    return Problem(
        "file",
        f"the steps in {folder} were measured with {reason}",
        "go back to what they were measured with, or begin a new run: another --run-dir",
    )


def _files(model: Model) -> dict[str, str]:
    """The model's files: bytes of the small ones, size and time of the weights."""
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
            "model", f"cannot read {error.filename}: {error.strerror}", "mend the rights of its files"
        ) from error
    return files


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
