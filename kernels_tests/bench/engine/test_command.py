"""The command line of the engine bench, and what keeps a run from starting."""

import json

import pytest
from click.testing import CliRunner

from bench import cli
from bench.engine import command, environment, models
from bench.engine.cells import parse
from bench.engine.engines import arguments, graph_sizes
from bench.engine.request import EngineRequest, resolve
from bench.engine.variants import NAMES, VARIANTS, has
from bench.kinds import read
from bench.record import files
from bench.roofline.prediction import kv_bytes
from bench.roofline.shape import load
from flashinfer_patches.errors import EXIT_CODES, Problem
from kernels_tests.bench.engine.samples import an_engine_result, rows_of
from kernels_tests.bench.samples import a_result
from vllm_launch import software
from vllm_launch.decoder import contract
from vllm_launch.scales import file

NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
}
REQUEST = EngineRequest(
    kind="engine",
    variants=[],
    cells=[],
    shape="gpt-oss-120b",
    compilation="default",
    routing="spread",
    starts=2,
    steps=40,
)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.software, "vllm_build", lambda: ("cpu", "0.32.0"))
    return lambda *words: CliRunner().invoke(cli.bench, ["engine", *words])


@pytest.mark.parametrize(
    "words",
    [
        ["stock-fp4"],
        ["--cells", "8x"],
        ["--shape", "other"],
        ["--starts", "0"],
        ["--resume", "run", "stock-fp8"],
        ["--resume", "run", "--profile"],
        ["--join", "run", "--steps", "4"],
    ],
)
def test_the_command_line_is_checked(bench, tmp_path, words):
    assert bench(*words).exit_code == 2
    assert not [*tmp_path.iterdir()]


def test_a_dry_run_prints_the_starts_in_order(bench, tmp_path):
    lines = bench("--dry-run", "--shape", "tiny", "--cells", "1x512,full", "plugin-bf16").stdout.splitlines()
    assert [line.split()[:3] for line in lines[:-1]] == [
        [name, "start", start] for start in ("1:", "2:") for name in ("stock-bf16", "plugin-bf16")
    ]
    assert not [*tmp_path.iterdir()]


def test_a_gpt_oss_needs_a_gpu(bench, tmp_path):
    refusal = bench("stock-fp8", "--run-dir", str(tmp_path / "run"))
    assert refusal.exit_code == 4 and "--shape tiny" in refusal.stderr
    assert not (tmp_path / "run").exists()


def test_two_ranks_need_two_gpus(bench, monkeypatch, tmp_path):
    words = ["stock-bf16", "--tensor-parallel", "2", "--cells", "1x2048", "--run-dir", str(tmp_path / "run")]
    monkeypatch.setattr(command.software, "vllm_build", lambda: ("gpu", "0.26.0"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for gpus, visible, refused in ((1, None, True), (2, None, False), (2, "1", True), (2, "0,1", False)):
        source = a_result(gpu=True).provenance.machine.model_copy(update={"gpus": gpus})
        monkeypatch.setattr(environment.machine, "detect", lambda _device, source=source: source)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        dry = bench(*words, "--dry-run")
        assert dry.exit_code == 0 and ("expected 2 GPUs" in dry.stderr) is refused
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refusal = bench(*words)
    assert refusal.exit_code == EXIT_CODES["software"] and "got 0" in refusal.stderr
    assert not (tmp_path / "run").exists()


def test_ranks_share_an_engine_without_nvlink_multicast(tmp_path):
    for ranks in (1, 2):
        request = REQUEST.model_copy(update={"tensor_parallel": ranks})
        run = resolve(tmp_path, request, "gpu", "0.33.0", 540)
        variables = environment.environment(run, VARIANTS[0], "nonce", tmp_path / "record.json")
        assert all((variables.get(name) == value) is (ranks == 2) for name, value in NO_MULTICAST.items())
        default = arguments(run, VARIANTS[0], tmp_path)
        assert default["tensor_parallel_size"] == ranks
        assert default["compilation_config"].get("pass_config", {}) == (
            {"fuse_allreduce_rms": False} if ranks > 1 else {}
        )


def test_a_variant_of_another_release_is_refused_by_name_and_else_left_out(tmp_path):
    for version, releases in (("0.26.0", False), ("0.33.0", True)):
        run = resolve(tmp_path, REQUEST, "gpu", version, 540)
        assert ("flashinfer-fp8" in {variant.name for variant in run.variants}) is releases
        named = resolve(tmp_path, REQUEST.model_copy(update={"variants": ["flashinfer-fp8"]}), "cpu", version, 540)
        assert bool(environment._release(named)) is not releases
    assert all(has(variant, "0.26.0") for variant in VARIANTS if variant.name != "flashinfer-fp8")


def test_a_decoder_needs_an_installed_package(monkeypatch, tmp_path):
    def refuse(environment):
        raise Problem("software", "not installed", "install it")

    monkeypatch.setattr(software, "check_installed", refuse)
    request = REQUEST.model_copy(update={"shape": "tiny", "variants": ["plugin-fp8"]})
    (problem,) = environment.problems(resolve(tmp_path / "run", request, "cpu", "0.32.0", 540))
    assert problem.message == "not installed"
    stock = request.model_copy(update={"variants": ["stock-fp8"]})
    assert environment.problems(resolve(tmp_path / "run", stock, "cpu", "0.32.0", 540)) == []


def test_a_run_of_two_variants_fits_into_an_execution(tmp_path):
    request = REQUEST.model_copy(update={"variants": ["plugin-fp8", "stock-fp8"], "compilation": "none"})
    assert 200 < command.expected_seconds(resolve(tmp_path, request, "gpu", "0.26.0", 540)) < 540
    assert command.expected_seconds(resolve(tmp_path, REQUEST, "gpu", "0.26.0", 540)) > 540


def test_arguments_of_a_gpu(tmp_path):
    run = resolve(tmp_path, REQUEST, "gpu", "0.26.0", 540)
    none = resolve(tmp_path, REQUEST.model_copy(update={"compilation": "none"}), "gpu", "0.26.0", 540)
    for variant in run.variants:
        default, uncompiled = (arguments(each, variant, tmp_path) for each in (run, none))
        assert "mode" not in default["compilation_config"] and uncompiled["compilation_config"]["mode"] == 0
        assert ("kv_cache_dtype" in default) is (variant.kv_format != "bf16")
        assert json.loads(json.dumps(default)) == default


def test_int8_static_gets_a_scale_file_of_the_shape(tmp_path):
    run = resolve(tmp_path, REQUEST, "gpu", "0.26.0", 540)
    variables = {
        variant.name: environment.environment(run, variant, "nonce", tmp_path / "record.json")
        for variant in run.variants
    }
    static = variables.pop("plugin-int8-static")
    assert static[contract.KV_FORMAT] == "int8"
    assert not any({contract.KV_FORMAT, contract.KV_SCALES} & set(others) for others in variables.values())
    model = models.write_folder("gpt-oss-120b", tmp_path / "model")
    models.write_scales("gpt-oss-120b", tmp_path / models.SCALES)
    scales = file.load(static[contract.KV_SCALES], 36, 8)
    file.check_model(scales, static[contract.KV_SCALES], model / "config.json")
    assert scales.kv_format == "int8" and scales.k[0].shape == (8, 64)


def test_a_variants_bytes_are_the_rooflines():
    shape = load(str(models.SHAPES["gpt-oss-120b"].config))
    size = {variant.name: kv_bytes(shape, variant.kv_cache, 32768, 1) for variant in VARIANTS}
    assert size["plugin-int8"] / size["plugin-fp8"] == 68 / 64
    assert size["plugin-int8-static"] == size["plugin-fp8"] < size["plugin-fp8-skip-sliding"] < size["plugin-bf16"]


def test_graphs_are_captured_for_each_batch_and_a_full_cache():
    assert graph_sizes([parse("1x512"), parse("8x512"), parse("8x2048-half")], 128) == [1, 8]
    sizes = graph_sizes([parse("1x512"), parse("full")], 128)
    assert sizes == [1, *range(8, 129, 8)]
    assert max(graph_sizes([parse("full")], 512)) == 512


def test_a_whole_run_is_written_resumed_and_reported(bench, fake_engines, tmp_path):
    words = ["stock-fp8", "--shape", "tiny", "--cells", "1x512", "--starts", "1", "--run-dir", "run"]
    assert bench(*words).exit_code == 0
    assert read(tmp_path / "run").rows and (tmp_path / "run" / "report.md").exists()
    resumed = bench("--resume", "run", "--json")
    assert resumed.exit_code == 0 and json.loads(resumed.stdout) == read(tmp_path / "run").model_dump(mode="json")
    assert bench(*words[:-3], "2", *words[-2:]).exit_code == 2  # another request in the same folder


def test_a_run_without_a_measured_cell_fails(bench, fake_engines):
    fake_engines.faults({"stock-bf16": "raise"})
    refusal = bench("stock-bf16", "--shape", "tiny", "--cells", "1x512", "--run-dir", "run")
    assert refusal.exit_code == 1 and "CUDA error" in refusal.stderr


def test_results_are_joined(bench, tmp_path):
    for name, variants in (("a", ("stock-bf16", "plugin-fp8")), ("b", ("stock-bf16", "stock-fp8"))):
        files.write(an_engine_result(*rows_of(*variants), identity=name), tmp_path / f"{name}.json")
    assert bench("--join", "a.json", "--join", "b.json", "--run-dir", "joined").exit_code == 0
    assert len(read(tmp_path / "joined").pieces) == 2 and (tmp_path / "joined" / "report.md").exists()
    assert bench("--join", "a.json", "--join", "b.json", "--run-dir", "joined").exit_code == 2


def test_every_variant_can_be_named():
    assert {*NAMES} >= {"stock-bf16", "stock-fp8", "stock-fp8-skip-sliding", "triton-fp8", "flashinfer-fp8"}
    assert {*NAMES} >= {"plugin-bf16", "plugin-fp8", "plugin-fp8-skip-sliding", "plugin-fp8-flashinfer"}
    assert {*NAMES} >= {"plugin-int8", "plugin-int8-static"}
