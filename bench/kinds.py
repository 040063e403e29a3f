"""A Result: what one run measured, on what, with what command. The only thing that reports are made from."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from bench.accuracy.result import AccuracyResult
from bench.kernels.result import KernelsResult
from bench.record.envelope import SCHEMA_VERSION
from bench.record.run_folder import REQUEST
from bench.serving.result import ServingResult
from flashinfer_patches.errors import Problem

Result = Annotated[ServingResult | AccuracyResult | KernelsResult, Field(discriminator="kind")]
RESULT = TypeAdapter(Result)


def file_of(path: Path) -> Path:
    """The result file that a path names: itself, or that of a run folder; raises Problem("file") for one without."""
    if (path / "result.json").is_file():
        return path / "result.json"
    if (path / REQUEST).is_file():
        what = f"{path} has no result.json: the run did not get that far"
        raise Problem("file", what, f"go on with it, by --resume {path}")
    return path


def read(path: Path) -> ServingResult | AccuracyResult | KernelsResult:
    """Read a result file of any kind, or that of a run folder.

    Raises Problem("file") for one that is missing, half-written, of another schema or that contradicts itself.
    """
    path = file_of(path)
    remedy = "name a result file, or a run folder that has one"
    if path.is_dir():
        raise Problem("file", f"{path} has no result.json", remedy)
    try:
        return RESULT.validate_json(path.read_bytes())
    except OSError as error:
        raise Problem("file", f"cannot read {path}: {error.strerror}", remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        contradiction = first["type"] == "value_error"
        wrong = "contradicts itself" if contradiction else f"is not a result of schema {SCHEMA_VERSION}"
        raise Problem(
            "file",
            f"{path} {wrong}: {where}: {first['msg'].removeprefix('Value error, ')}",
            "it may be half-written, edited or from another version; run the bench again, with --resume to keep its"
            " steps",
        ) from error
