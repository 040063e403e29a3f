"""The wheel: its content, and that it works from an empty folder, in an environment of the user's own."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from flashinfer_patches.errors import ENVIRONMENT
from kernels_tests.processes import completed, free_port, spawn, wait_for, watched

REPO = Path(__file__).resolve().parents[1]
LEFT_OUT = ("results/",)  # of the copy that is built: large, and not in the wheel
PACKAGES = {"bench", "flashinfer_patches", "fp8_sinks", "lowp", "vllm_launch"}
MODEL_FILES = {
    *("config.json", "generation_config.json", "heldout.jsonl", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "README.md", "NOTICES.txt"),
}
INSPECTION = """
import json
from importlib.metadata import entry_points, version
from pathlib import Path
import bench.suite, vllm_launch.profile
from bench.accuracy.texts import texts_of
from flashinfer_patches import series
from lowp.cache_read import build as read
from lowp.cache_write import build as write
from lowp.sink_decode import build as decode
from bench.engine.models import SHAPES
from vllm_launch import certificate, model

tiny = model.find(model.of_default("tiny_gpt_oss"))
configs = [shape.config for shape in SHAPES.values()]
sources = [build.SOURCE.folder / name for build in (read, write, decode) for name in build.SOURCE.files]
print(json.dumps({
    "files": [bench.suite.__file__, vllm_launch.profile.__file__, series.__file__, tiny.path],
    "profiles": vllm_launch.profile.names(),
    "suites": bench.suite.names(),
    "missing": [str(path) for path in [*sources, *configs, *certificate.source_files()] if not path.is_file()],
    "model": tiny.name,
    "has_sinks": tiny.has_sinks,
    "texts": len(texts_of(tiny, bench.suite.load(None, tiny.name).texts)),
    "plugins": {entry.name: entry.value for entry in entry_points(group="vllm.general_plugins")},
    "version": version("fp8-sinks"),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a source distribution, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if not name.startswith(LEFT_OUT) and os.path.lexists(REPO / name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, tree / name, follow_symlinks=False)
    run([sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('..')"], tree)
    (source,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel installed, for PYTHONPATH: before the environment's own fp8-sinks, if it has one."""
    target = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)], target)
    return target


def run(command, folder, **environment):
    result = completed(command, 120, cwd=folder, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return result


def test_it_holds_data_and_no_tools(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == PACKAGES
    folder = "vllm_launch/tiny_gpt_oss/"
    assert {name.removeprefix(folder) for name in names if name.startswith(folder)} == MODEL_FILES
    suffixes = {Path(name).suffix for name in names}
    assert {".cu", ".cuh", ".patch", ".yaml", ".safetensors"} <= suffixes


def test_every_module_and_data_file_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    suffixes = (".py", ".cu", ".cuh", ".patch", ".yaml", ".json", ".safetensors", "/series", "/manifest")
    expected = {
        str(path.relative_to(REPO))
        for package in PACKAGES
        for path in (REPO / package).rglob("*")
        if path.is_file() and str(path).endswith(suffixes)
    }
    assert expected and expected <= names


def test_it_works_from_an_empty_folder(site, tmp_path):
    environment = {"PYTHONPATH": str(site), "HOME": str(tmp_path), "PYTHONSAFEPATH": "1"}
    inspected = json.loads(run([sys.executable, "-c", INSPECTION], tmp_path, **environment).stdout)
    assert all(path.startswith(str(site)) for path in inspected["files"])
    assert (
        inspected["missing"] == []
        and {"baseline", "fp8"} <= {*inspected["profiles"]}
        and "tiny_gpt_oss" in inspected["suites"]
    )
    assert (inspected["model"], inspected["has_sinks"], inspected["texts"] > 8) == ("tiny_gpt_oss", True, True)
    assert inspected["plugins"]["fp8_sinks"] == "vllm_launch.plugin:register"
    program = [sys.executable, str(site / "bin" / "fp8-sinks")]
    assert "certify" in run([*program, "--help"], tmp_path, **environment).stdout
    assert inspected["version"] in run([*program, "--version"], tmp_path, **environment).stdout
    listed = completed([*program, "serve", "no-profile"], 60, cwd=tmp_path, env=os.environ | environment)
    assert listed.returncode == 2 and "baseline" in listed.stderr
    certified = completed([*program, "certify", "--dry-run"], 60, cwd=tmp_path, env=os.environ | environment)
    assert certified.returncode in (0, ENVIRONMENT) and "Traceback" not in certified.stderr
    planned = run([*program, "bench", "engine", "--shape", "tiny", "--dry-run"], tmp_path, **environment)
    assert "stock-bf16" in planned.stdout and "Traceback" not in planned.stderr
    run([*program, "roofline", "--model", "gpt-oss-20b", "--bandwidth", "4.3TB/s"], tmp_path, **environment)
    assert list(tmp_path.iterdir()) == []


# ---- with the wheel beside vLLM, and its variable unset, nothing changes


def answers(site, folder, **environment):
    """Greedy tokens and their log-probabilities of vLLM with an FP8 cache, started by hand."""
    from vllm_launch.model import EMBEDDED

    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(EMBEDDED)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "512", "--kv-cache-dtype", "fp8", "--dtype", "bfloat16"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FP8_SINKS_")}
    settings = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
    with serving(command, folder, inherited | settings | environment, f"http://127.0.0.1:{port}") as url:
        body = {"model": "tiny", "prompt": "The capital of France is", "max_tokens": 48, "temperature": 0}
        body |= {"logprobs": 2, "ignore_eos": True, "return_token_ids": True}
        choice = requests.post(f"{url}/v1/completions", json=body, timeout=120).json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


@contextmanager
def serving(command, folder, environment, url):
    folder.mkdir()

    def is_ready():
        with suppress(requests.RequestException):
            return requests.get(f"{url}/health", timeout=5).status_code == 200
        return server.poll() is not None

    with watched(), (folder / "server.log").open("w") as log:
        server = spawn(command, stdout=log, stderr=log, cwd=folder, env=environment)
        wait_for(is_ready, 120)
        assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
        yield url
        server.terminate()
        server.wait()


@pytest.mark.server
@pytest.mark.long
@pytest.mark.native_fp8
def test_with_the_variable_unset_nothing_changes(site, tmp_path):
    """Against vLLM without any plugin. Our writer rounds where stock's truncates: its answers would differ."""
    stock = answers(site, tmp_path / "stock", VLLM_PLUGINS="")
    assert answers(site, tmp_path / "installed") == stock
    assert answers(site, tmp_path / "enabled", FP8_SINKS_PLUGIN="1") != stock
