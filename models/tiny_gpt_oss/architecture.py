"""Shape of the tiny gpt-oss, its tokenizer, and the two functions that make training it fast.

Served and measured, the model is transformers' own GptOssForCausalLM. Only training replaces the attention
by `sink_attention` and the experts by `dense_experts`: the same formulas, without [queries, keys] matrices in
memory and without a loop over experts.
"""

import types
from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AttentionInterface, GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
SPECIALS = ("<|endoftext|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|pad|>")  # ids 0 to 5
END_OF_TEXT, END_OF_ANSWER, PAD = 0, 4, 5
WINDOW = 128  # keys a sliding layer sees, the query's own among them
SINK_MEAN, SINK_SPREAD = 5.0, 2.0  # of the normal distribution that sinks start from, natural log units
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|start|>{{ message['role'] }}<|message|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of VOCABULARY entries on `texts` (without special tokens in them)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[END_OF_TEXT],
        eos_token=SPECIALS[END_OF_ANSWER],
        pad_token=SPECIALS[PAD],
        additional_special_tokens=list(SPECIALS[1:4]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=131072,
    )


def make_config() -> GptOssConfig:
    """The configuration: gpt-oss in small, with the YaRN parameters of the real one."""
    return GptOssConfig(
        num_hidden_layers=4,
        hidden_size=256,
        intermediate_size=128,
        head_dim=64,
        num_attention_heads=16,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
        sliding_window=WINDOW,
        swiglu_limit=7.0,
        max_position_embeddings=131072,
        initializer_range=0.03,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_ANSWER,
        pad_token_id=PAD,
    )


@lru_cache
def window_mask(blocks: int, device: torch.device) -> torch.Tensor:
    """Which keys a block of WINDOW queries sees: bool [blocks, WINDOW, 1 + 2 * WINDOW].

    The keys are the sink, the block before and the block itself; the first block has none before it.
    """
    query = torch.arange(WINDOW, device=device)[:, None]
    key = torch.arange(WINDOW, device=device)[None, :]
    sink = torch.ones(WINDOW, 1, dtype=torch.bool, device=device)
    mask = torch.cat([sink, key > query, key <= query], dim=1).repeat(blocks, 1, 1)
    mask[0, :, 1 : 1 + WINDOW] = False
    return mask


def sink_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    s_aux: torch.Tensor,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention with a sink as one more key, for training (no cache, whole rows).

    query [B, H, T, D], key and value [B, H_kv, T, D], s_aux [H]; returns ([B, T, H, D], None). The sink key
    is a unit vector in a lane of its own, where each query holds its head's sink and other keys hold 0; its
    value is 0. So out = sum_j exp(q.k_j) v_j / (exp(sink) + sum_j exp(q.k_j)). Sliding layers work on blocks
    of WINDOW queries and need T to be a multiple of it.
    """
    batch, heads, length, dim = query.shape
    group = heads // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    lane = s_aux.to(query.dtype).view(1, heads, 1, 1).expand(batch, heads, length, 1)
    query = F.pad(torch.cat([query * scaling, lane], -1), (0, 7))  # head size 72: kernels want eights
    key, value = F.pad(key, (0, 8)), F.pad(value, (0, 8))
    sink = torch.zeros(dim + 8, dtype=query.dtype, device=query.device)
    sink[dim] = 1.0
    if sliding_window is None:
        sink = sink.expand(batch, heads, 1, -1)
        key, value = torch.cat([sink, key], 2), F.pad(value, (0, 0, 1, 0))
        query = F.pad(query, (0, 0, 1, 0))  # a query for the sink's row, dropped below
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)[:, :, 1:]
    else:
        blocks = length // WINDOW

        def neighbourhood(rows: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
            """[B, H, T, D'] -> [B, H * blocks, 1 + 2 * WINDOW, D']: `first`, the block before, the block."""
            before = F.pad(rows, (0, 0, WINDOW, 0))[:, :, :length]
            shape = (batch, heads * blocks, WINDOW, dim + 8)
            return torch.cat(
                [first.expand(batch, heads * blocks, 1, -1), before.reshape(shape), rows.reshape(shape)], 2
            )

        key, value = neighbourhood(key, sink), neighbourhood(value, torch.zeros_like(sink))
        mask = window_mask(blocks, query.device).repeat(heads, 1, 1)
        query = query.reshape(batch, heads * blocks, WINDOW, dim + 8)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
        out = out.reshape(batch, heads, length, dim + 8)
    return out[..., :dim].transpose(1, 2), None


def dense_experts(
    experts: torch.nn.Module, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """All experts on all tokens, then the router's choice: hidden [N, C], the others [N, top_k] -> [N, C]."""
    rows = hidden.expand(experts.num_experts, *hidden.shape)
    gate_up = torch.bmm(rows, experts.gate_up_proj) + experts.gate_up_proj_bias[:, None]
    out = torch.bmm(experts._apply_gate(gate_up), experts.down_proj) + experts.down_proj_bias[:, None]
    share = torch.zeros(hidden.shape[0], experts.num_experts, dtype=weights.dtype, device=weights.device)
    share = share.scatter(1, indices, weights)
    return (out * share.T[..., None]).sum(0)


def make_trainable_model() -> GptOssForCausalLM:
    """A fresh model in FP32 with sinks away from zero and the two fast functions in place."""
    AttentionInterface.register("sink_attention", sink_attention)
    model = GptOssForCausalLM._from_config(make_config(), attn_implementation="sink_attention", dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.normal_(SINK_MEAN, SINK_SPREAD)
            layer.mlp.experts.forward = types.MethodType(dense_experts, layer.mlp.experts)
    return model
