"""What an 8-bit KV cache costs: E4M3 without scales and with scales of a tensor or KV head, and int8.

The error of the format, not of a kernel: float64 attention over the cache as stored, against the BF16 cache. The scales
come from other tokens than those that are attended to, but for int8 per token and head, whose scales are in the cache.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from bench.kernels import attention_rows
from bench.kernels.attention_rows import AttentionRow
from flashinfer_patches.strict import NotNegative, Strict
from lowp.formats import amax_scale, quantize
from lowp.paged.reference import reference
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS
from lowp.paged.tables import sinks_near
from vllm_launch import machine, provenance
from vllm_launch import model as models
from vllm_launch.provenance import Provenance
from vllm_launch.scales import HEADROOM, magnitudes

TOKENS = 1024  # of each of the two texts, whole pages
QUERY_TOKENS = 128
SEED = 17
# The caches: E4M3 with scale 1.0 and with scales of `scales calibrate`, int8 per token and head, int8 with such scales.
CACHES = ("e4m3", "e4m3-tensor", "e4m3-head", "int8", "int8-static")
# Standard deviation of each KV head's keys and values; 448 is E4M3's largest value, 0.002 its smallest.
SYNTHETIC = {
    "randn": (1.0,) * KV_HEADS,
    "large": (300.0,) * KV_HEADS,
    "uneven": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 300.0, 1000.0),
}


class ValidationRow(Strict):
    """One KV head. data: the model's name, or a key of SYNTHETIC. k_amax, v_amax: of the tokens attended to.

    saturated: share of keys and values out of E4M3's range with scale 1.0. rel_l2: |out - exact| / |exact| of the
    attention output of the head's query heads, by cache.
    """

    data: str
    layer: int
    kv_head: int
    k_amax: NotNegative
    v_amax: NotNegative
    saturated: Annotated[float, Field(ge=0, le=1)]
    rel_l2: dict[str, NotNegative]


class Validation(Strict):
    """The rows, and where they come from. headroom: by format, factor of the scales on the largest magnitude.

    attention: attention in low precision, against float64, with its verdicts.
    """

    provenance: Provenance
    tokens: int = TOKENS
    headroom: dict[str, float] = HEADROOM
    rows: list[ValidationRow]
    attention: list[AttentionRow]


class States(NamedTuple):
    """BF16 keys and values of a text in one layer, [tokens, kv_heads, head_dim]."""

    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class Case:
    """A layer: two texts' keys and values, and the second one's last queries [1, tokens, query_heads, head_dim]."""

    data: str
    layer: int
    calibration: States
    states: States
    q: torch.Tensor
    sinks: torch.Tensor
    window_left: int = -1


def run(command: list[str]) -> Validation:
    """Validate on the tiny model and on synthetic data; seconds on a CPU. Needs transformers."""
    rows = [row for cases in (tiny_model(), synthetic()) for case in cases for row in validate(case)]
    attention = list(attention_rows.rows())
    return Validation(provenance=provenance.collect(machine.detect("cpu"), command), rows=rows, attention=attention)


def lines(rows: list[ValidationRow]) -> Iterator[str]:
    """A table: a line for each row."""
    headers = ("K amax", "V amax", "saturated", *CACHES)
    yield " ".join([f"{'relL2 against a BF16 cache':28}", *(f"{header:>{_width(header)}}" for header in headers)])
    for row in rows:
        errors = [f"{row.rel_l2[cache]:{_width(cache)}.4f}" for cache in CACHES]
        cells = [f"{row.k_amax:9.3g}", f"{row.v_amax:9.3g}", f"{row.saturated:9.2%}", *errors]
        yield " ".join([f"{f'{row.data} layer {row.layer} head {row.kv_head}':28}", *cells])


def validate(case: Case) -> Iterator[ValidationRow]:
    """Yield a row for each KV head of a case."""
    exact = _attention(case, case.states)
    errors = {cache: _rel_l2(_quantised_attention(case, cache), exact, case) for cache in CACHES}
    k, v = (_counts(states) for states in case.states)
    amax = [magnitudes.percentile(counts, 100).tolist() for counts in (k, v)]
    shares = (magnitudes.saturated(k + v, 1.0, "e4m3") / (k + v).sum(-1)).tolist()
    for head, share in enumerate(shares):
        yield ValidationRow(
            data=case.data,
            layer=case.layer,
            kv_head=head,
            k_amax=amax[0][head],
            v_amax=amax[1][head],
            saturated=share,
            rel_l2={name: float(f"{values[head]:.3e}") for name, values in errors.items()},
        )


def synthetic() -> Iterator[Case]:
    """Yield a case for each of SYNTHETIC: randn times each head's size, queries that give logits near N(0, 1)."""
    random = torch.Generator().manual_seed(SEED)
    draw = partial(torch.randn, generator=random)
    for data, sizes in SYNTHETIC.items():
        size = torch.tensor(sizes)[:, None]
        texts = [States(*((draw(TOKENS, KV_HEADS, HEAD_DIM) * size).bfloat16() for _ in "kv")) for _ in range(2)]
        q = draw(1, QUERY_TOKENS, KV_HEADS, QUERY_HEADS // KV_HEADS, HEAD_DIM) / size[:, None]
        q = q.view(1, QUERY_TOKENS, QUERY_HEADS, HEAD_DIM).bfloat16()
        yield Case(data, 0, *texts, q, sinks_near(TOKENS, QUERY_HEADS, random))


@torch.no_grad()
def tiny_model() -> Iterator[Case]:
    """Yield a case for each layer of the embedded model, from its held-out text."""
    from transformers import DynamicCache
    from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb

    from vllm_launch.scales import collect

    model = models.find(str(models.EMBEDDED))
    lines = (models.EMBEDDED / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    ids = collect.tokenize(model, "\n".join(json.loads(line)["text"] for line in lines))[: 2 * TOKENS]
    loaded = collect.load(model, "cpu", is_mxfp4=False)
    queries = []

    def keep_queries(attention, _arguments, options):
        hidden = options["hidden_states"][:, -QUERY_TOKENS:]
        cos, sin = (part[:, -QUERY_TOKENS:] for part in options["position_embeddings"])
        q = attention.q_proj(hidden).view(1, QUERY_TOKENS, -1, attention.head_dim).transpose(1, 2)
        queries.append(apply_rotary_pos_emb(q, q, cos, sin)[0].transpose(1, 2))

    def states_of(prompt: list[int]) -> list[States]:
        cache = DynamicCache()  # without a config: keeps window layers whole
        loaded.model(input_ids=torch.tensor([prompt]), past_key_values=cache, use_cache=True)
        return [States(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in cache.layers]

    calibration = states_of(ids[:TOKENS])
    for layer in loaded.model.layers:
        layer.self_attn.register_forward_pre_hook(keep_queries, with_kwargs=True)
    states = states_of(ids[TOKENS:])
    for index, layer in enumerate(loaded.model.layers):
        window = layer.self_attn.sliding_window
        sinks = layer.self_attn.sinks.float()
        window_left = window - 1 if window else -1
        yield Case(model.name, index, calibration[index], states[index], queries[index], sinks, window_left)


def _width(header: str) -> int:
    return max(9, len(header))


def _counts(states: torch.Tensor) -> torch.Tensor:
    return magnitudes.count(states.transpose(0, 1)[None])


def _scales(case: Case, cache: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The scales of K and of V of a cache as the reference takes them."""
    kv_format = cache.split("-")[0]
    match cache:
        case "e4m3":
            return None, None
        case "int8":
            scales = (amax_scale(part, kv_format, "token_head") for part in case.states)
            k, v = (scale.view(-1, PAGE_SIZE, scale.shape[1]) for scale in scales)
            return k, v
    counts = [_counts(part) for part in case.calibration]
    if cache == "e4m3-tensor":
        counts = [rows.sum(0, keepdim=True) for rows in counts]
    elif cache == "int8-static":
        counts[0] = magnitudes.count_pairs(case.calibration.k.transpose(0, 1)[None])
    k, v = (magnitudes.scales(rows, kv_format, 100, HEADROOM[kv_format]) for rows in counts)
    return (k.repeat(1, 2), v) if cache == "int8-static" else (k, v)


def _quantised_attention(case: Case, cache: str) -> torch.Tensor:
    scales, kv_format = _scales(case, cache), cache.split("-")[0]
    pairs = zip(case.states, scales, strict=True)
    stored = States(*(_stored(part, kv_format, scale) for part, scale in pairs))
    return _attention(case, stored, k_scale=scales[0], v_scale=scales[1])


def _stored(states: torch.Tensor, kv_format: str, scale: torch.Tensor | None) -> torch.Tensor:
    """Quantise [tokens, kv_heads, head_dim]. scale: [1], [kv_heads], [kv_heads, head_dim] or of each token and head."""
    if scale is not None and scale.dim() == 3:
        scale = scale.flatten(0, 1)[..., None]
    elif scale is not None and scale.dim() == 1:
        scale = scale[:, None]
    return quantize(states, kv_format, scale).values


def _attention(case: Case, stored: States, **scales: torch.Tensor) -> torch.Tensor:
    """Attention over keys and values as stored, in float64."""
    tokens, kv_heads, head_dim = stored.k.shape
    out, _ = reference(
        case.q,
        *(part.view(-1, PAGE_SIZE, kv_heads, head_dim) for part in stored),
        torch.arange(tokens // PAGE_SIZE, dtype=torch.int32)[None],
        torch.tensor([tokens], dtype=torch.int32),
        case.sinks,
        sm_scale=head_dim**-0.5,
        window_left=case.window_left,
        layout="NHD",
        **scales,
    )
    return out


def _rel_l2(out: torch.Tensor, exact: torch.Tensor, case: Case) -> list[float]:
    """|out - exact| / |exact| of the query heads of each KV head."""
    kv_heads = case.states.k.shape[1]
    error, norm = (part.view(QUERY_TOKENS, kv_heads, -1).norm(dim=(0, 2)) for part in (out - exact, exact))
    return (error / norm).tolist()
