"""The specification of attention whose operands are all FP8: both products of codes, accumulated in fp32.

With codes q8, k8, v8 of q / q_scale, k / k_scale, v / v_scale, scales folded into the products:
    s = (q8 k8^T) q_scale k_scale / sqrt(head_dim)
scaled P:   p8 = codes of 448 exp(s - max s);   out = (p8 v8) v_scale / (448 sum exp(s - max s))
unscaled P: p8 = codes of softmax(s);           out = (p8 v8) v_scale
Probabilities of n tokens are near 1 / n: unscaled, those below 2^-10 are stored as 0.
"""

import torch

from lowp.formats import FORMATS, amax_scale, dequantize, quantize


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    kv_format: str = "e4m3",
    granularity: str = "head",
    scaled_p: bool = True,
) -> torch.Tensor:
    """Return the attention of q over k and v, [batch, heads, tokens, head_dim], in fp32; no mask.

    granularity: of the scales of Q, K and V: none, tensor or head. Raises ValueError for another one.
    """
    if granularity not in ("none", "tensor", "head"):
        raise ValueError(f"granularity {granularity!r} does not fold into the products; expected none, tensor or head")
    scales = [amax_scale(x, kv_format, granularity, "HND") for x in (q, k, v)]
    q8, k8, v8 = (quantize(x, kv_format, scale).values.float() for x, scale in zip((q, k, v), scales, strict=True))
    q_scale, k_scale, v_scale = (1.0 if scale is None else scale for scale in scales)
    scores = q8 @ k8.transpose(-1, -2) * (q_scale * k_scale * q.shape[-1] ** -0.5)
    p, factor = weights(scores, kv_format, scaled_p)
    return p @ v8 * (v_scale * factor)


def weights(scores: torch.Tensor, kv_format: str, scaled_p: bool) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Return P's codes as fp32 and the factor that makes them probabilities."""
    if not scaled_p:
        return dequantize(quantize(scores.softmax(-1), kv_format).values), 1.0
    largest = FORMATS[kv_format].largest
    p = (scores - scores.amax(-1, keepdim=True)).exp()
    return dequantize(quantize(largest * p, kv_format).values), 1 / (largest * p.sum(-1, keepdim=True))
