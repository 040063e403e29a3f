"""apply_mx: imports, and the calls, models and GPUs that it refuses."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from kernels_tests.lowp.mx_models import LINEAR_LAYERS, WIDTH, make_model, needs_torchao, plain
from lowp.mx_linear import apply_mx, checks
from lowp.mx_linear.backend import config, load_torchao
from lowp.mx_linear.recipes import RECIPES, recipe_for

pytestmark = needs_torchao


@pytest.fixture
def model():
    return make_model()


@pytest.mark.parametrize("name", ["torchao.prototype.mx_formats", "torchao.quantization"])
def test_a_failed_import_is_an_error(model, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install torchao==0\.18\.0"):
        apply_mx(model, 8, "mlp", "emulated")
    assert len(plain(model)) == LINEAR_LAYERS


def test_a_name_that_torchao_lacks_is_an_error(model, monkeypatch):
    """As of a release that renamed one: the mistake behind a transform that never ran."""
    load_torchao()
    formats = sys.modules["torchao.prototype.mx_formats"]
    monkeypatch.delattr(formats, "MXDynamicActivationMXWeightConfig")
    with pytest.raises(ImportError, match="MXDynamicActivationMXWeightConfig"):
        apply_mx(model, 8, "mlp", "emulated")


def test_torchao_is_imported_late_and_quietly():
    code = (
        "import sys, torch, lowp.mx_linear; assert 'torchao' not in sys.modules\n"
        "lowp.mx_linear.apply_mx(torch.nn.Linear(32, 32).bfloat16(), 8, 'all', 'emulated')\n"
        "import logging; assert logging.getLogger('torchao').level == logging.NOTSET; print('converted')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert (process.returncode, process.stdout, process.stderr) == (0, "converted\n", "")


def test_log_levels_are_restored(caplog):
    logging.getLogger("torchao").setLevel(logging.INFO)
    load_torchao()
    assert logging.getLogger("torchao").level == logging.INFO
    logging.getLogger("torchao").setLevel(logging.NOTSET)


def compiled(model):
    return torch.compile(model)


def compiled_block(model):
    model.core.blocks[1].compile()
    return model


def compiled_forward(model):
    model.core.blocks[1].forward = torch.compile(model.core.blocks[1].forward)
    return model


@pytest.mark.parametrize("compile_model", [compiled, compiled_block, compiled_forward])
def test_a_compiled_model_is_refused(model, compile_model):
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        apply_mx(compile_model(model), 8, "mlp", "emulated")
    assert len(plain(model)) == LINEAR_LAYERS


def test_compiled_afterwards_it_gives_the_same(model):
    apply_mx(model, 8, "all", "emulated")
    x = torch.randn(4, WIDTH).bfloat16()
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


def change(path, make):
    def changed(model):
        owner, _, child = path.rpartition(".")
        parent = model.get_submodule(owner)
        if isinstance(parent, nn.ModuleDict):
            parent[child] = make()
        else:
            setattr(parent, child, make())
        return model

    return changed


FC1 = "core.blocks.1.mlp.fc1"
MODELS = {
    "fp32": (lambda model: model.float(), {}, TypeError, r"fc1 has torch.float32 weights.*bfloat16"),
    "one fp16": (change(FC1, lambda: nn.Linear(64, 128).half()), {}, TypeError, r"1\.mlp\.fc1 has torch.float16"),
    "K % 32": (change(FC1, lambda: nn.Linear(100, 128).bfloat16()), {}, ValueError, r"1\.mlp\.fc1 has 100 .* of 32"),
    "nvfp4 N % 16": (
        change(FC1, lambda: nn.Linear(64, 120).bfloat16()),
        {"bits": 4, "format": "nvfp4"},
        ValueError,
        r"120 out_features; nvfp4 needs .* of 16",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_converted_is_refused_whole(model, name):
    make, arguments, error, message = MODELS[name]
    with pytest.raises(error, match=message) as refusal:
        apply_mx(make(model), **{"kernel": "emulated", **arguments})
    assert "\n" not in str(refusal.value) and len(plain(model)) == LINEAR_LAYERS


def test_a_second_conversion_is_refused(model):
    apply_mx(model, 8, "mlp", "emulated")
    with pytest.raises(ValueError, match="MXTensor"):
        apply_mx(model, 8, "all", "emulated")


ARGUMENTS = [
    ({"bits": 6}, ValueError),
    ({"scope": "ffn"}, ValueError),
    ({"kernel": "cuda"}, ValueError),
    ({"kernel": "triton"}, NotImplementedError),
    ({"format": "fp6"}, ValueError),
    ({"format": "nvfp4"}, ValueError),  # has 4 bits
    ({"bits": 4, "format": "mxfp8"}, ValueError),
    ({"bits": 4, "kernel": "float8-row"}, ValueError),
    ({"format": "mxfp8", "kernel": "float8-row"}, ValueError),
    ({"skip": "mlp"}, TypeError),
    ({"skip": ("mlpp",)}, ValueError),
    ({"skip": ("mlp",)}, ValueError),  # leaves nothing
    ({"late_layers": 4}, ValueError),  # of 3 blocks
    ({"late_layers": -1}, ValueError),
]


@pytest.mark.parametrize(("arguments", "error"), ARGUMENTS, ids=str)
def test_mistaken_arguments(model, arguments, error):
    with pytest.raises(error) as refusal:
        apply_mx(model, **{"kernel": "emulated", **arguments})
    assert "\n" not in str(refusal.value) and len(plain(model)) == LINEAR_LAYERS


def test_kernels_by_their_old_names():
    assert recipe_for(8, "cutlass", None) == recipe_for(8, "auto", None) == RECIPES["mxfp8", "auto"]
    with pytest.raises(NotImplementedError, match="no Triton kernel"):
        recipe_for(8, "triton", None)


H200, B200, B300, RTX_5090, L40, A100 = (9, 0), (10, 0), (10, 3), (12, 0), (8, 9), (8, 0)


@pytest.mark.parametrize(
    ("format", "kernel", "gpus"),
    [
        ("mxfp8", "auto", [B200, B300, RTX_5090]),
        ("mxfp4", "auto", [B200, B300]),
        ("nvfp4", "auto", [B200, B300, RTX_5090]),
        ("float8", "float8-row", [L40, H200, B200, B300, RTX_5090]),
        ("mxfp8", "emulated", [A100, L40, H200, B200, B300, RTX_5090]),
    ],
)
def test_a_kernel_runs_where_its_units_are(monkeypatch, format, kernel, gpus):
    for capability in (A100, L40, H200, B200, B300, RTX_5090):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, sm=capability: sm)
        check = lambda: checks.check_device(torch.device("cuda"), RECIPES[format, kernel])  # noqa: E731
        if capability in gpus:
            check()
            continue
        with pytest.raises(NotImplementedError, match="kernel='emulated'") as refusal:
            check()
        offers_float8 = "float8-row" in str(refusal.value).split(";")[-1]
        assert offers_float8 == (kernel == "auto" and capability >= (8, 9)), "the remedy has to run there"


@pytest.mark.parametrize("kernel", ["auto", "cutlass", "float8-row"])
def test_a_cpu_has_no_units(model, kernel):
    with pytest.raises(NotImplementedError, match="a CPU; use kernel='emulated'"):
        apply_mx(model, kernel=kernel)
    assert len(plain(model)) == LINEAR_LAYERS


def test_configurations_of_gpu_kernels():
    """What torchao is given where no test can run it."""
    torchao = load_torchao()
    before = torch._inductor.config.coordinate_descent_tuning
    float8 = config(torchao, RECIPES["float8", "float8-row"])
    assert isinstance(float8.granularity[1], torchao.PerRow) and not float8.set_inductor_config
    assert torch._inductor.config.coordinate_descent_tuning == before
    for format, dtype in (("mxfp8", torch.float8_e4m3fn), ("mxfp4", torch.float4_e2m1fn_x2)):
        mx = config(torchao, RECIPES[format, "auto"])
        assert (mx.kernel_preference, mx.weight_dtype, mx.block_size) == (torchao.KernelPreference.AUTO, dtype, 32)
    assert config(torchao, RECIPES["nvfp4", "auto"]).use_dynamic_per_tensor_scale
