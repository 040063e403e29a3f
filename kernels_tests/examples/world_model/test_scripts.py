"""The scripts rollout.py and train.py: files, summary, exit codes."""

import importlib.util
import json
import sys

import pytest
from PIL import Image
from world.checkpoint import load_checkpoint, save_checkpoint
from world.config import Config

from kernels_tests.examples.world_model.conftest import EXAMPLE, SMALL


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"world_model_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, monkeypatch, *words: object, **changes) -> None:
    script = load(name)
    for attribute, value in changes.items():
        monkeypatch.setattr(script, attribute, value)
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    script.main()


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(model, path)
    return path


@pytest.mark.parametrize("mode", ["clip", "still", "motion"])
def test_a_rollout_writes_its_frames_and_record(mode, checkpoint, tmp_path, monkeypatch, capsys):
    config = tmp_path / "settings.yaml"
    config.write_text("kv_late_layers: 1\nmxfp_enable: off\n")
    monkeypatch.setenv("OWL_K_FP8", "1")
    out = tmp_path / "out"
    words = ("--config", config, "--checkpoint", checkpoint, "--out", out, "--frames", 6, "--context", 3)
    run("rollout", monkeypatch, *words, "--mode", mode, "--device", "cpu")
    with Image.open(out / "rollout.gif") as gif:
        assert gif.n_frames == 3 and gif.size == (4 * (3 * 32 + 4), 4 * 32)
    assert [path.name for path in sorted((out / "frames").iterdir())] == [f"frame_{n:03}.png" for n in range(3)]
    record = json.loads((out / "record.json").read_text())
    assert record["requested"]["sources"] == {
        "kv_late_layers": "settings.yaml",
        "mxfp_enable": "settings.yaml",
        "k_fp8": "OWL_K_FP8",
    }
    assert record["clip"]["mode"] == mode and record["bf16"]["memory"]["ratio"] == 1
    assert {"truth", "bf16", "bf16_to_truth"} == record["psnr_db"].keys()
    assert str(out / "rollout.gif") in capsys.readouterr().out
    assert not list(out.rglob("*.part"))


def test_mxfp_list_prints_the_layers(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OWL_MXFP_LIST", "1")
    monkeypatch.setenv("OWL_MXFP_SCOPE", "attn")
    monkeypatch.setenv("OWL_KV_LATE_LAYERS", "0")
    words = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--frames", 4, "--context", 3, "--device", "cpu")
    run("rollout", monkeypatch, *words)
    text = capsys.readouterr().out
    assert "blocks.1.attn.qkv" in text and "note: linear layers run as emulated" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [("mxfp_bit: 8", "unknown key mxfp_bit"), ("kv_late_layers: 9\nmxfp_enable: off", "kv_late_layers is 9")],
)
def test_a_mistake_is_a_line_and_exit_code_2(checkpoint, tmp_path, monkeypatch, capsys, text, message):
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit) as exit_info:
        run("rollout", monkeypatch, "--config", config, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def train(monkeypatch, folder, *words: object) -> None:
    """Run two steps of a small model, in a folder."""
    small = {"Config": lambda: Config(**SMALL), "measure": lambda model, **_: {"may_judge": False}}
    sizes = ("--steps", 2, "--clips", 2, "--frames", 4, "--device", "cpu")
    paths = ("--state", folder / "state.pt", "--out", folder / "trained.safetensors")
    run("train", monkeypatch, *sizes, *paths, *words, **small)


def test_training_writes_a_checkpoint_and_its_provenance(tmp_path, monkeypatch):
    train(monkeypatch, tmp_path)
    provenance = json.loads((tmp_path / "trained.json").read_text())
    assert provenance["plan"] == {"steps": 2, "clips": 2, "frames": 4, "seed": 1}
    assert provenance["losses"].keys() == {"cached", "draft", "decoded"} and "commit" in provenance
    assert load_checkpoint(tmp_path / "trained.safetensors").config == Config(**SMALL)


def test_training_refuses_to_overwrite_or_to_resume_nothing(tmp_path, monkeypatch, capsys):
    for state, words, message in ((None, ["--resume"], "does not exist"), (b"state", [], "expected --resume")):
        if state is not None:
            (tmp_path / "state.pt").write_bytes(state)
        with pytest.raises(SystemExit):
            train(monkeypatch, tmp_path, *words)
        assert message in capsys.readouterr().err
    assert (tmp_path / "state.pt").read_bytes() == b"state"
