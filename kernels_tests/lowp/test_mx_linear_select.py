"""Which Linear layers a scope, `late_layers` and `skip` select."""

import pytest
from torch import nn

from lowp.mx_linear.select import CATEGORIES, SCOPES, category, select

LAYER = nn.Linear(1, 1)
LAYERS = [
    "embed",
    "layout.proj",
    "blocks.0.attn.qkv",
    "blocks.0.attn.out",
    "blocks.0.mlp.fc1",
    "blocks.0.mlp.out",
    "blocks.1.attn.k_proj",
    "blocks.1.attn.proj",
    "blocks.1.mlp.fc2",
    "final.norm_proj",
    "final_layer.proj",
    "semifinal.proj",
]


def selected(paths, scope="all", late_layers=0, skip=(), bits=8):
    return select(dict.fromkeys(paths, LAYER), paths, scope, late_layers, skip, bits)


def test_scopes_match_whole_components():
    """The mutant that a substring makes: "k" is in every `blocks`, "out" in `layout`, "mlp" in `mlp_mixer`."""
    assert selected(LAYERS, "attn") == ["blocks.0.attn.qkv", "blocks.0.attn.out", "blocks.1.attn.k_proj"]
    assert selected(LAYERS, "mlp") == ["blocks.0.mlp.fc1", "blocks.0.mlp.out", "blocks.1.mlp.fc2"]
    assert selected(LAYERS) == LAYERS
    assert selected(["blocks.0.k", "mlp_mixer.x", "to_qk", "mlp.x"], "mlp") == ["mlp.x"]


def test_skip_matches_whole_components():
    assert selected(["blocks.0.k", "blocks.0.kv"], skip=("k",)) == ["blocks.0.kv"]
    assert selected(LAYERS, "mlp", skip=("fc1", "blocks")[:1]) == ["blocks.0.mlp.out", "blocks.1.mlp.fc2"]
    with pytest.raises(ValueError, match="skip has fc"):
        selected(LAYERS, skip=("fc",))


@pytest.mark.parametrize("name", sorted(word for words in CATEGORIES.values() for word in words))
def test_every_name_has_its_category(name):
    assert name in CATEGORIES[category(f"blocks.0.{name}")] and category(f"blocks.0.{name}s") == "other"


def test_scopes_share_no_layer():
    assert set(SCOPES) == {"mlp", "attn", "all"} and not set(selected(LAYERS, "mlp")) & set(selected(LAYERS, "attn"))


def test_final_projections_stay_with_4_bits():
    assert set(LAYERS) - set(selected(LAYERS, bits=4)) == {"final.norm_proj", "final_layer.proj"}


def test_late_layers():
    paths = [f"{owner}blocks.{i}.mlp.fc1" for owner in ("", "decoder.") for i in range(12)]
    late = selected([*paths, "embed"], late_layers=3)
    assert late == [path for path in paths if int(path.split("blocks.")[1].split(".")[0]) >= 9]
    assert selected([*paths, "embed"], late_layers=12) == paths, "a layer outside blocks is not late"


def test_blocks_without_a_linear_layer_count():
    paths = ["blocks.0.fc1", "blocks.1.fc1", "blocks.2.norm"]
    layers = dict.fromkeys(paths[:2], LAYER)
    assert select(layers, paths, "mlp", 2, (), 8) == ["blocks.1.fc1"]


def test_blocks_inside_blocks():
    """The outermost list has the layers of the model."""
    paths = [f"blocks.{i}.sub.blocks.{j}.fc1" for i in range(3) for j in range(5)]
    assert selected(paths, late_layers=1) == paths[10:]


@pytest.mark.parametrize("paths", [["mlp.fc1"], ["myblocks.0.fc1"], ["blocks.x.fc1"]])
def test_late_layers_without_blocks(paths):
    with pytest.raises(ValueError, match=r"no path of the model has blocks\.N"):
        selected(paths, late_layers=1)


@pytest.mark.parametrize("late_layers", [3, -1])
def test_more_late_layers_than_blocks(late_layers):
    with pytest.raises(ValueError, match=r"expected 0 .* to 2"):
        selected(LAYERS, late_layers=late_layers)


@pytest.mark.parametrize(
    ("paths", "arguments"),
    [
        ([], {}),
        (["embed"], {"scope": "mlp"}),
        (["mlp.fc1"], {"skip": ("mlp",)}),
        (["final.proj"], {"bits": 4}),
        (["blocks.0.mlp.fc1", "blocks.1.qkv"], {"scope": "mlp", "late_layers": 1}),
    ],
)
def test_nothing_to_convert_is_an_error(paths, arguments):
    with pytest.raises(ValueError, match="no layer to convert"):
        selected(paths, **arguments)
