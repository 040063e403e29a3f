"""Counting a config's bytes: against transformers' own models, and what is refused."""

import json

import pytest

from bench.roofline import shape
from flashinfer_patches.errors import Problem

LARGE, SMALL = shape.load("gpt-oss-120b"), shape.load("gpt-oss-20b")


def a_config(**changes) -> dict:
    content = json.loads((shape.SHIPPED / "gpt-oss-20b.json").read_text())
    return {key: value for key, value in (content | changes).items() if value != "absent"}


def a_tiny_config() -> dict:
    sizes = {"hidden_size": 64, "intermediate_size": 48, "vocab_size": 100, "num_hidden_layers": 5, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 8}
    names = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}
    return {"num_local_experts": 4, "num_experts_per_tok": 2} | names | sizes | heads


@pytest.mark.parametrize(("counted", "billions"), [(LARGE, 116.83), (SMALL, 20.91)])
def test_counts_all_parameters(counted, billions):
    values = (counted.attention_bytes + counted.other_bytes + counted.head_bytes) / shape.BYTES_16 + 201088 * 2880
    layers = 36 if counted is LARGE else 24
    expert = 3 * 2880 * 2880 + 3 * 2880
    assert counted.expert_bytes == layers * (3 * 2880 * 2880 * 4.25 / 8 + 3 * 2880 * 2)
    assert (values + layers * counted.experts * expert) / 1e9 == pytest.approx(billions, abs=0.005)


def test_counts_the_parameters_of_transformers():
    """Parameters and layer types of transformers' own model, in 16 bits; it builds them without memory."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    content = a_tiny_config()
    config = transformers.AutoConfig.for_model(**content, tie_word_embeddings=False)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    counted = shape.count("tiny", content)
    total = counted.attention_bytes + counted.other_bytes + counted.head_bytes + 100 * counted.row_bytes
    total += counted.experts * counted.expert_bytes
    assert total == 2 * sum(parameter.numel() for parameter in model.parameters())
    assert counted.full_values == config.layer_types.count("full_attention") * 2 * 2 * 16
    assert counted.sliding_values == config.layer_types.count("sliding_attention") * 2 * 2 * 16


def test_reads_a_folder_a_file_and_a_name(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(a_config()))
    (tmp_path / "other.json").write_text(json.dumps(a_config(layer_types=None)))
    assert shape.load(str(folder)) == shape.load(str(folder / "config.json")) == SMALL._replace(name="my-model")
    assert shape.load(str(tmp_path / "other.json")) == SMALL._replace(name="other")
    assert shape.load("openai/gpt-oss-20b") == SMALL


def test_a_16_bit_checkpoint_has_larger_experts():
    dense = shape.count("bf16", a_config(quantization_config=None))
    assert dense.expert_bytes == 24 * 2 * (3 * 2880 * 2880 + 3 * 2880)
    assert dense.attention_bytes == SMALL.attention_bytes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (a_config(model_type="llama"), "'llama' is not counted"),
        (a_config(model_type="granite_swa"), "not counted"),
        (a_config(model_type="absent"), "None is not counted"),
        ([], "None is not counted"),
        (a_config(num_local_experts="absent"), "num_local_experts: Field required"),
        (a_config(hidden_size=0), "hidden_size"),
        (a_config(layer_types=["full_attention"]), ": 1 layer_types for 24 layers"),
        (a_config(layer_types=["linear_attention"] * 24), "layer_types"),
        (a_config(num_experts_per_tok=33), "33 experts a token, of 32"),
        (a_config(quantization_config={"quant_method": "fp8"}), "quant_method: Input should be 'mxfp4'"),
    ],
)
def test_refuses_configs_that_would_be_counted_wrong(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(Problem) as caught:
        shape.load(str(path))
    assert caught.value.kind == "model"
    assert words in caught.value.message
    assert "config.json" in caught.value.remedy
