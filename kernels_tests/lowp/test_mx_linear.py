"""apply_mx: the accuracy of each format, the audit, and a torchao that does not convert."""

import dataclasses
import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kernels_tests.lowp.mx_models import LINEAR_LAYERS, WIDTH, make_model, needs_torchao, plain, weight_types
from lowp.mx_linear import apply_mx
from lowp.mx_linear.backend import load_torchao

pytestmark = needs_torchao


@pytest.fixture
def model():
    return make_model()


@pytest.mark.parametrize(
    ("bits", "format", "tensor_type", "least", "most"),  # dB; measured: 28.3, 15.5 and 19.9
    [(8, None, "MXTensor", 27, 30), (4, None, "MXTensor", 14.5, 17), (4, "nvfp4", "NVFP4Tensor", 18.5, 21)],
)
def test_emulated_formats_have_their_accuracy(bits, format, tensor_type, least, most):
    torch.manual_seed(0)
    layer = nn.Linear(128, 512).bfloat16()
    x = torch.randn(64, 128).bfloat16()
    expected = layer(x).detach().float()
    (row,) = apply_mx(layer, bits, "all", "emulated", format=format).layers
    error = ((layer(x).detach().float() - expected).norm() / expected.norm()).item()
    assert type(layer.weight).__name__ == row.tensor_type == tensor_type
    assert least < row.sqnr < most and abs(-20 * math.log10(error) - row.sqnr) < 1
    assert row.sqnr == pytest.approx(-20 * math.log10(row.relative))
    assert 0 < row.mae < row.max_error


def test_a_coarser_format_is_no_better():
    """Of 4 bits, NVFP4 has smaller blocks, and its activations stay BF16 when emulated."""
    sqnr = []
    for bits, format in ((8, "mxfp8"), (4, "nvfp4"), (4, "mxfp4")):
        audit = apply_mx(nn.Linear(128, 64).bfloat16(), bits, "all", "emulated", format=format)
        sqnr.append(audit.layers[0].sqnr)
    assert sqnr == sorted(sqnr, reverse=True)


def test_the_audit_names_the_converted_layers(model):
    audit = apply_mx(model, 8, "all", "emulated")
    assert plain(model) == [] and {row.name for row in audit.layers} == set(weight_types(model))
    assert audit.count == LINEAR_LAYERS and audit.categories == {"attn": 6, "mlp": 6, "other": 4}
    shapes = {(row.in_features, row.out_features) for row in audit.layers if row.category == "mlp"}
    assert shapes == {(WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH)}
    assert (audit.format, audit.kernel, audit.scope, audit.late_layers) == ("mxfp8", "emulated", "all", 0)
    table = audit.table().splitlines()
    assert [line.split()[0] for line in table[2:]] == [row.name for row in audit.layers]
    assert model(torch.randn(2, 5, WIDTH).bfloat16()).isfinite().all()


@pytest.mark.parametrize("scope", ["mlp", "attn"])
def test_a_scope_leaves_the_rest(model, scope):
    audit = apply_mx(model, 8, scope, "emulated")
    assert audit.categories == {scope: 6}
    assert set(plain(model)) == set(weight_types(model)) - {row.name for row in audit.layers}


def test_scopes_can_be_added(model):
    apply_mx(model, 4, "mlp", "emulated", late_layers=1)
    apply_mx(model, 8, "attn", "emulated")
    assert len(plain(model)) == LINEAR_LAYERS - 2 - 6


def test_zero_weights_are_exact(model):
    nn.init.zeros_(model.core.blocks[0].gate.weight)
    rows = {row.name: row for row in apply_mx(model, 8, "all", "emulated").layers}
    exact = rows["core.blocks.0.gate"]
    assert (exact.sqnr, exact.relative, exact.max_error) == (None, 0, 0)
    assert all(row.sqnr for row in rows.values() if row is not exact)


def mutated_torchao(**names):
    """A load_torchao whose names are replaced."""
    return lambda: SimpleNamespace(**{**vars(load_torchao()), **names})


def test_a_swallowed_transform_is_an_error(monkeypatch):
    """The mutants: torchao does nothing, or converts all but one."""
    real = load_torchao().quantize_

    def all_except_fc2(model, configuration, filter_fn):
        real(model, configuration, lambda module, name: filter_fn(module, name) and "0.mlp.fc2" not in name)

    for quantize in (lambda *_args, **_kwargs: None, all_except_fc2):
        monkeypatch.setattr("lowp.mx_linear.api.load_torchao", mutated_torchao(quantize_=quantize))
        with pytest.raises(RuntimeError, match=r"unconverted .*mlp\.fc2"):
            apply_mx(make_model(), 8, "mlp", "emulated")


def test_an_output_that_is_not_finite_is_an_error(model):
    model.core.blocks[1].mlp["fc1"].weight.data[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match=r"blocks\.1\.mlp\.fc1 gives NaN"):
        apply_mx(model, 8, "mlp", "emulated")


def test_the_audit_is_plain_data(model):
    row = dataclasses.asdict(apply_mx(model, 8, "mlp", "emulated"))["layers"][0]
    assert {type(value) for value in row.values()} <= {str, int, float, type(None)}


def test_the_signature():
    parameters = inspect.signature(apply_mx).parameters
    assert list(parameters) == ["model", "bits", "scope", "kernel", "late_layers", "skip", "format"]
