"""Join the results of a run's parts, which may come from several machines, into one."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from pydantic import ValidationError

from bench.kernels.environment import conditions, differing
from bench.kernels.request import part_of
from bench.kernels.result import KernelsResult, write_result
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing


def write(paths: Sequence[Path], folder: Path) -> KernelsResult:
    """Write the joined result of all parts as folder/result.json; the folder is absent or empty.

    Raises Problem("file") for a result that cannot be read, for parts that are missing or twice there, and for parts
    of different GPUs, releases or commits.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Problem("file", f"{folder} is not empty", "name an absent or empty folder with --run-dir")
    result = join([_read(path) for path in paths], folder.name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_result(result, folder / "result.json")
    return result


def join(results: Sequence[KernelsResult], identity: str) -> KernelsResult:
    """All parts as one result, with the provenance, builds and left out kernels of the first part."""
    ordered = sorted(results, key=lambda result: part_of(result.part or "1/1"))
    first = ordered[0]
    if [result.part for result in ordered] != [f"{number}/{len(ordered)}" for number in range(1, len(ordered) + 1)]:
        parts = ", ".join(f"part {result.part}" if result.part else "a whole run" for result in ordered)
        raise Problem("file", f"got {parts}; expected each of all parts once", "measure what is missing with --part")
    for result in ordered[1:]:
        _check_alike(first, result)
    ceilings = [result.read_ceiling_bytes_per_s for result in ordered]
    rows = [row.model_copy(update={"part": number}) for number, result in enumerate(ordered, 1) for row in result.rows]
    return first.model_copy(
        update={
            "id": identity,
            "read_ceiling_bytes_per_s": max(ceilings),
            "part": None,
            "part_ceilings": ceilings,
            "left_out": list(dict.fromkeys(chain.from_iterable(result.left_out for result in ordered))),
            "rows": rows,
        }
    )


def _check_alike(first: KernelsResult, second: KernelsResult) -> None:
    sides = [conditions(result.provenance) | {"geometry": result.geometry} for result in (first, second)]
    if changed := differing(*sides):
        raise Problem(
            "file",
            f"part {second.part} has another {', '.join(changed)} than part {first.part}",
            "measure all parts with the same GPU model, releases and commit",
        )


def _read(path: Path) -> KernelsResult:
    file = path / "result.json" if path.is_dir() else path
    try:
        return KernelsResult.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise Problem("file", f"{file} is no result of this bench", "name result files or run folders") from error
