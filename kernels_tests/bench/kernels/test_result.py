"""A kernels result: figures are finite and positive, and a row or build has figures or an error."""

import math

import pytest
from pydantic import ValidationError

from bench.kernels.result import Build, KernelRow
from bench.kernels.shape import even
from bench.kinds import read
from flashinfer_patches.errors import Problem
from kernels_tests.bench.kernels.samples import a_kernel_row, a_kernels_result


@pytest.mark.parametrize(
    "changes",
    [
        {"time_us": None},
        {"rel_l2": None},
        {"rel_l2": math.nan},
        {"rel_l2": -1e-3},
        {"samples_us": []},
        {"samples_us": [9.9, 10.0, math.inf]},
        {"samples_us": [9.9, 10.0, math.nan]},
        {"samples_us": [-9.9, 10.0, 10.1]},
        {"samples_us": [20.0, 21.0, 22.0]},
        {"time_us": 0.0, "samples_us": [0.0]},
        {"kv_bytes": 0},
        {"error": "failed"},
        {"error": "failed", "time_us": None, "samples_us": [], "rel_l2": 1.0},
    ],
)
def test_a_row_has_all_figures_or_an_error(changes):
    row = a_kernel_row(even(1, 2048)).model_dump()
    KernelRow(**row)
    with pytest.raises(ValidationError):
        KernelRow(**(row | changes))


@pytest.mark.parametrize("changes", [{"seconds": math.nan}, {"seconds": -1.0}, {"seconds": None}, {"error": "failed"}])
def test_a_build_has_seconds_or_an_error(changes):
    build = a_kernels_result().builds[0].model_dump()
    Build(**build)
    with pytest.raises(ValidationError):
        Build(**(build | changes))


@pytest.mark.parametrize("ceiling", ["NaN", "-4.4e12", "0"])
def test_a_read_ceiling_is_finite_and_positive(tmp_path, ceiling):
    path = tmp_path / "result.json"
    path.write_text(a_kernels_result().model_dump_json().replace("4400000000000.0", ceiling))
    with pytest.raises(Problem, match="read_ceiling_bytes_per_s"):
        read(path)
