"""`fp8-sinks scales calibrate` on the embedded model, on a CPU, and what it refuses."""

import hashlib
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from flashinfer_patches.errors import EXIT_CODES, Problem
from fp8_sinks.cli import main
from kernels_tests.vllm_launch.machines import HOST
from kernels_tests.vllm_launch.scales.conftest import MODEL
from vllm_launch import model
from vllm_launch.scales import HEADROOM, calibrate, collect, command, file, magnitudes

TEXT = "The capital of France is Paris. " * 60


@pytest.fixture
def invoke(tmp_path, monkeypatch, loaded):
    """Return a function that runs the command with the loaded model; the text is tmp_path/text.txt."""
    monkeypatch.setattr(collect, "load", lambda *_, **__: loaded)
    monkeypatch.setattr(calibrate, "PROMPT_TOKENS", 100)
    (tmp_path / "text.txt").write_text(TEXT)

    def run(*options, model=MODEL.path, text=tmp_path / "text.txt", out=tmp_path / "scales.safetensors"):
        words = ["scales", "calibrate", str(model), "--text", str(text), "--out", str(out), *options]
        return CliRunner().invoke(main, words)

    return run


def test_a_whole_calibration(invoke, tmp_path, loaded):
    result = invoke("--tokens", "256", "--headroom", "1.5", "--json")
    assert result.exit_code == 0, result.stderr
    data, path = json.loads(result.stdout), tmp_path / "scales.safetensors"
    scales = file.load(path, MODEL.layers, MODEL.kv_heads)
    assert data["sha256"] == scales.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    origin = scales.origin
    assert data["origin"] == origin.model_dump()
    assert (origin.tokens, origin.headroom, origin.percentile, origin.granularity) == (256, 1.5, 100, "head")
    assert origin.model == "tiny_gpt_oss" and origin.values == 256 * 64 * 2 * MODEL.kv_heads * MODEL.layers
    assert origin.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    ids = collect.tokenize(MODEL, TEXT)[:256]
    counts = collect.count(loaded, [ids[:100], ids[100:200], ids[200:]], lambda _: None, "e4m3")
    for row in data["rows"]:
        kind = "kv".index(row["kind"])
        of_head = counts[row["layer"]][kind][row["kv_head"]]
        assert row["amax"] == float(magnitudes.percentile(of_head, 100))
        assert row["scales"] == [float((scales.k, scales.v)[kind][row["layer"]][row["kv_head"]])]
        assert row["scales"] == [pytest.approx(row["amax"] * 1.5 / 448)]
        assert 0 < row["percentiles"]["50"] < row["percentiles"]["99.9"] <= row["amax"]
        assert row["saturated_unscaled"] == row["saturated_scaled"] == 0
    assert len(data["rows"]) == 2 * MODEL.kv_heads * MODEL.layers


def test_a_calibration_of_int8(invoke, tmp_path, loaded):
    result = invoke("--kv-format", "int8", "--tokens", "256", "--headroom", "1.25", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    scales = file.load(tmp_path / "scales.safetensors", MODEL.layers, MODEL.kv_heads)
    assert (scales.kv_format, scales.origin.granularity, scales.origin.headroom) == ("int8", "channel", 1.25)
    ids = collect.tokenize(MODEL, TEXT)[:256]
    counts = collect.count(loaded, [ids[:100], ids[100:200], ids[200:]], lambda _: None, "int8")
    for layer, (k, v) in enumerate(counts):
        pairs = magnitudes.percentile(k, 100) * 1.25 / 127
        torch.testing.assert_close(scales.k[layer], torch.cat([pairs, pairs], dim=1))
        torch.testing.assert_close(scales.v[layer], magnitudes.percentile(v, 100) * 1.25 / 127)
    rows = {(row["layer"], row["kind"], row["kv_head"]): row for row in data["rows"]}
    assert len(rows) == 2 * MODEL.kv_heads * MODEL.layers
    for (layer, kind, head), row in rows.items():
        channels = scales.k[layer][head, :32] if kind == "k" else scales.v[layer][head : head + 1]
        assert row["scales"] == channels.tolist() and row["values"] == 256 * (32 if kind == "k" else 64)
        assert row["amax"] == pytest.approx(max(row["scales"]) * 127 / 1.25) and row["saturated_scaled"] == 0


def test_int8_has_a_headroom_and_a_granularity_of_its_own(invoke, tmp_path):
    assert invoke("--kv-format", "int8", "--tokens", "64").exit_code == 0
    origin = file.load(tmp_path / "scales.safetensors", MODEL.layers, MODEL.kv_heads).origin
    assert origin.headroom == HEADROOM["int8"] and origin.percentile == 100
    for granularity in ("head", "tensor"):
        assert invoke("--kv-format", "int8", "--granularity", granularity).exit_code == 2


def test_a_scale_file_of_the_other_format_is_replaced(invoke, tmp_path):
    for kv_format in ("int8", "e4m3"):
        assert invoke("--kv-format", kv_format, "--tokens", "64").exit_code == 0
        scales = file.load(tmp_path / "scales.safetensors", MODEL.layers, MODEL.kv_heads)
        assert scales.kv_format == kv_format


def test_a_scale_for_each_tensor(invoke, tmp_path):
    assert invoke("--tokens", "128", "--granularity", "tensor").exit_code == 0
    scales = file.load(tmp_path / "scales.safetensors", MODEL.layers, MODEL.kv_heads)
    assert all(scale.unique().numel() == 1 for scale in (*scales.k, *scales.v))
    assert scales.origin.granularity == "tensor"


@pytest.mark.parametrize("kv_format", HEADROOM)
def test_a_percentile_that_clips(invoke, kv_format):
    options = ("--kv-format", kv_format, "--tokens", "128", "--percentile", "99", "--headroom", "1")
    result = invoke(*options, "--json")
    origin = json.loads(result.stdout)["origin"]
    assert 0 < origin["saturated_scaled"] <= 0.01 * origin["values"] and origin["saturated_unscaled"] == 0


@pytest.mark.parametrize("kv_format", HEADROOM)
def test_the_table_is_short(invoke, tmp_path, kv_format):
    result = invoke("--kv-format", kv_format, "--tokens", "128")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) <= 10
    assert str(tmp_path / "scales.safetensors") in result.stdout


def test_a_dry_run_loads_nothing(invoke, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "run", None)
    result = invoke("--dry-run", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["layers"] == MODEL.layers
    assert not (tmp_path / "scales.safetensors").exists()


def test_every_problem_is_reported(invoke, tmp_path, model_folder):
    (tmp_path / "notes").write_text("mine")
    llama = model_folder(architectures=["LlamaForCausalLM"])
    options = {"model": llama, "text": tmp_path / "absent", "out": tmp_path / "notes"}
    result = invoke("--dry-run", **options)
    assert result.exit_code == EXIT_CODES["model"]
    assert result.stderr.count("remedy") == 3 and (tmp_path / "notes").read_text() == "mine"
    assert invoke(**options).exit_code == EXIT_CODES["model"]


def test_a_model_that_does_not_fit(invoke, monkeypatch):
    monkeypatch.setattr(calibrate, "bf16_bytes", lambda _model: 1 << 60)
    assert invoke().exit_code == EXIT_CODES["memory"]


def test_counts_that_do_not_fit(invoke, monkeypatch):
    """int8 counts each pair of channels: layers x KV heads x (32 pairs of K, and V) x 32,768 magnitudes x 8 bytes."""
    plan = json.loads(invoke("--kv-format", "int8", "--dry-run", "--json").stdout)
    assert plan["count_bytes"] == MODEL.layers * MODEL.kv_heads * 33 * 32768 * 8
    monkeypatch.setattr(calibrate, "count_bytes", lambda _request: 1 << 60)
    assert invoke("--kv-format", "int8").exit_code == EXIT_CODES["memory"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xff"])
def test_a_text_without_tokens(invoke, tmp_path, content):
    (tmp_path / "text.txt").write_bytes(content)
    assert invoke().exit_code == EXIT_CODES["file"] and not (tmp_path / "scales.safetensors").exists()


@pytest.mark.parametrize(("kind", "kv_format"), [("v", "e4m3"), ("v", "int8"), ("k", "e4m3"), ("k", "int8")])
def test_a_model_that_computes_nan(invoke, tmp_path, loaded, kind, kv_format):
    bias = getattr(loaded.model.layers[2].self_attn, f"{kind}_proj").bias
    before = bias.data.clone()
    try:
        bias.data[64] = torch.nan
        result = invoke("--kv-format", kv_format, "--tokens", "64")
    finally:
        bias.data.copy_(before)
    assert result.exit_code == EXIT_CODES["model"] and f"{kind.upper()} of layer 2, head 1" in result.stderr
    assert not (tmp_path / "scales.safetensors").exists()


@pytest.mark.parametrize(
    "options", [["--percentile", "0"], ["--percentile", "101"], ["--headroom", "0.5"], ["--tokens", "0"]]
)
def test_settings_out_of_range(invoke, options):
    assert invoke(*options).exit_code == 2


@pytest.mark.parametrize(("accelerate", "device"), [(None, "cuda"), ("spec", "auto")])
def test_a_gpu_is_taken(monkeypatch, accelerate, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(calibrate, "find_spec", lambda _name: accelerate)
    assert calibrate.device() == device


def test_memory_of_each_device(monkeypatch):
    machines = {"cpu": HOST, "gpu": HOST.model_copy(update={"gpus": 2, "free_bytes": 1000})}
    monkeypatch.setattr(calibrate.machine, "detect", machines.get)
    free = [calibrate._free_bytes(target) for target in ("cpu", "cuda", "auto")]
    assert free == [HOST.free_bytes, 1000, 2000 + HOST.free_bytes]
    machines["gpu"] = machines["gpu"].model_copy(update={"unified": True})
    assert calibrate._free_bytes("auto") == 1000


def test_a_model_that_lacks_a_tensor(tmp_path):
    """transformers would fill it with random numbers."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL.path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(MODEL.path + "/model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Problem) as refusal:
        collect.load(model.find(str(folder)), "cpu", is_mxfp4=False)
    assert refusal.value.kind == "model" and "model.layers.1.self_attn.k_proj.weight" in refusal.value.message


def test_bytes_of_a_packed_model(model_folder):
    folder = model_folder(quantization_config={"quant_method": "mxfp4"})
    packed = model.find(str(folder))
    assert calibrate.bf16_bytes(packed) == int(packed.weight_bytes * 16 / 4.25)


def test_an_environment_without_transformers(invoke, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "transformers" else name)
    assert invoke("--dry-run").exit_code == EXIT_CODES["software"]
