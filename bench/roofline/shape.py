"""A model's shape: from its config.json, the bytes of its weights and of a token's entries in the KV cache."""

import json
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ValidationError, model_validator

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Count
from vllm_launch.model import ModelConfig

SHIPPED = Path(__file__).parent / "configs"
BYTES_16 = 2
BYTES_MXFP4 = (4 + 8 / 32) / 8  # four bits, and an eight-bit scale for each block of 32

MODEL_TYPE = "gpt_oss"  # whose tensors are counted, as transformers defines them
LayerType = Literal["full_attention", "sliding_attention"]


class ModelShape(NamedTuple):
    """What the roofline needs of a model. Bytes of weights, and KV values of a token, are sums over all layers.

    expert_bytes: of one expert in every layer. other_bytes: routers and norms. row_bytes: a token's row of the
    embedding. window: tokens that a sliding-window layer reads at most.
    """

    name: str
    attention_bytes: float
    expert_bytes: float
    other_bytes: float
    head_bytes: float
    row_bytes: float
    experts: int
    experts_per_token: int
    full_values: int
    sliding_values: int
    window: int
    max_context: int


class Quantization(BaseModel):
    """MXFP4 of the experts; transformers and vLLM keep all other weights in 16 bits."""

    quant_method: Literal["mxfp4"]


class GptOssConfig(ModelConfig):
    """The keys of a gpt-oss config.json that bytes depend on; others are ignored."""

    vocab_size: Count
    intermediate_size: Count
    sliding_window: Count | None
    layer_types: list[LayerType] | None = None
    num_local_experts: Count
    num_experts_per_tok: Count
    attention_bias: bool = True
    quantization_config: Quantization | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"{len(self.layer_types)} layer_types for {self.num_hidden_layers} layers")
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(f"{self.num_experts_per_tok} experts a token, of {self.num_local_experts}")
        return self


def names() -> list[str]:
    """The configs that ship with us."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load(model: str) -> ModelShape:
    """The shape of `model`: a folder with a config.json, such a file, or the name of a config that ships with us.

    Raises Problem("model") if there is none, and for one whose bytes cannot be counted.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / "config.json"
    elif model.removeprefix("openai/") in names():
        path = SHIPPED / f"{model.removeprefix('openai/')}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = f"give --model a config.json, a folder with one, or one of {', '.join(names())}"
        raise Problem("model", f"cannot read {path}: {getattr(error, 'strerror', None) or error}", remedy) from error
    return count(path.resolve().parent.name if path.name == "config.json" else path.stem, content)


def count(name: str, content: dict) -> ModelShape:
    """Count the bytes that a config.json's content describes.

    Raises Problem("model") where the count would be wrong: for other model types, weights quantised otherwise than
    MXFP4, and missing keys.
    """
    config = _validated(name, content)
    hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    kv_heads, head_dim = config.kv_heads, config.head_size
    qkv, output = (heads + 2 * kv_heads) * head_dim, heads * head_dim
    attention = hidden * qkv + output * hidden + heads + config.attention_bias * (qkv + hidden)  # heads: the sinks
    mlp = 3 * hidden * config.intermediate_size  # gate, up, down
    mlp_bias = 2 * config.intermediate_size + hidden
    router = config.num_local_experts * (hidden + 1)
    expert_bytes = mlp * (BYTES_MXFP4 if config.quantization_config else BYTES_16) + mlp_bias * BYTES_16
    full = config.layer_types.count("full_attention") if config.layer_types else layers // 2
    return ModelShape(
        name=name,
        attention_bytes=BYTES_16 * layers * attention,
        expert_bytes=layers * expert_bytes,
        other_bytes=BYTES_16 * (layers * (router + 2 * hidden) + hidden),
        head_bytes=BYTES_16 * config.vocab_size * hidden,
        row_bytes=BYTES_16 * hidden,
        experts=config.num_local_experts,
        experts_per_token=config.num_experts_per_tok,
        full_values=full * 2 * kv_heads * head_dim,
        sliding_values=(layers - full) * 2 * kv_heads * head_dim,
        window=config.sliding_window or config.max_position_embeddings,
        max_context=config.max_position_embeddings,
    )


def _validated(name: str, content: dict) -> GptOssConfig:
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != MODEL_TYPE:
        message = f"{name}: model type {model_type!r} is not counted, only {MODEL_TYPE}"
        raise Problem("model", message, f"give --model the config.json of a {MODEL_TYPE} model")
    try:
        return GptOssConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = ": ".join(part for part in (name, field, first["msg"].removeprefix("Value error, ")) if part)
        remedy = "give --model a config.json as transformers writes it, with weights in 16 bits or MXFP4 experts"
        raise Problem("model", message, remedy) from error
