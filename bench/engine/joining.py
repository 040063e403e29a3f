"""Join the results of several pieces into one; ratios stay within a piece."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bench.engine.result import EngineResult
from bench.record import files
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing


def write(paths: Sequence[Path], folder: Path) -> EngineResult:
    """Write the joined result as folder/result.json; the folder is absent or empty. Raises Problem("file")."""
    if folder.exists() and any(folder.iterdir()):
        raise Problem("file", f"{folder} is not empty", "name an absent or empty folder with --run-dir")
    result = join([_read(path) for path in paths], folder.name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write(result, folder / "result.json")
    return result


def join(results: Sequence[EngineResult], identity: str) -> EngineResult:
    """All pieces as one result with the first one's provenance; raises Problem("file") for a piece that is there twice,
    and for another model, vLLM, compilation, routing, number of GPUs or GPU model.
    """
    first, pieces = results[0], [piece for result in results for piece in result.pieces]
    if duplicates := sorted({piece.id for piece in pieces if [each.id for each in pieces].count(piece.id) > 1}):
        raise Problem("file", f"piece {duplicates[0]} is there more than once", "name each result once")
    moved: dict[str, list] = {"rows": [], "left_out": [], "profiles": []}
    before = 0
    for result in results:
        _check_alike(first, result)
        for field, entries in moved.items():
            current = getattr(result, field)
            entries += [entry.model_copy(update={"piece": entry.piece + before}) for entry in current]
        before += len(result.pieces)
    return first.model_copy(update={"id": identity, "pieces": pieces, **moved})


def _check_alike(first: EngineResult, second: EngineResult) -> None:
    sides = [_conditions(result) for result in (first, second)]
    if changed := [name for name, value in sides[0].items() if sides[1][name] != value]:
        values = (", ".join(f"{name} {side[name]}" for name in changed) for side in sides)
        message = f"{first.id} has {next(values)}; {second.id} has {next(values)}"
        remedy = "join results of one model, vLLM release, compilation, routing, number of GPUs and GPU model"
        raise Problem("file", message, remedy)


def _conditions(result: EngineResult) -> dict[str, str]:
    return {
        "shape": result.shape,
        "vLLM": result.vllm,
        "compilation": result.compilation,
        "routing": result.routing,
        "tensor parallel": str(result.tensor_parallel),
        "GPU": result.provenance.machine.name,
    }


def _read(path: Path) -> EngineResult:
    file = path / "result.json" if path.is_dir() else path
    try:
        return EngineResult.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise Problem("file", f"{file} is no result of this bench", "name result files or run folders") from error
