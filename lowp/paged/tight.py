"""The tight test of a decode kernel against float64 attention on the dequantised cache."""

import torch


def problems(out, exact, rel_l2=4e-3):
    """List how `out` differs from `exact` [batch, heads, head_dim], with the worst element; empty within the bounds.

    Every element: |error| <= 2^-7 |exact| + 2^-6 rms(head's row); every head's row: relL2 <= rel_l2. Rounding the
    probabilities to BF16 costs an element up to 2^-9 sum p |v|. Worst is an element where two equal keys cancel: with
    |v| of 5 standard deviations that is 0.9 x 2^-6 of the row's rms. Errors up to 2^-25 are forgiven in fp16, as
    rounding to its subnormals costs so much where a sink is far over a row's scores.
    """
    limits = torch.finfo(out.dtype)
    error = ((out.double() - exact).abs() - limits.smallest_normal * limits.eps / 2).clamp(min=0)
    rms = exact.square().mean(-1, keepdim=True).sqrt()
    excess = error - 2**-7 * exact.abs() - 2**-6 * rms
    failures = []
    if not (excess <= 0).all():
        index = torch.unravel_index(excess.nan_to_num(nan=torch.inf).argmax(), excess.shape)
        index = tuple(int(axis) for axis in index)
        failures.append(f"at (batch, head, dim) {index}: {out[index].item():.6g} is not {exact[index].item():.6g}")
    norm = exact.norm(dim=-1)
    ratio = torch.where(norm > 0, error.norm(dim=-1) / norm.clamp(min=1e-300), 0)
    if not (ratio <= rel_l2).all():
        failures.append(f"relL2 {ratio.max().item():.2e} in the worst head is over {rel_l2:.0e}")
    return failures


def lse_problems(lse, exact):
    """List how `lse` differs from `exact`, with the largest error; empty within 2e-3 and 1e-6 of the largest value."""
    error = (lse.double() - exact).abs().nan_to_num(nan=torch.inf)
    error[lse == exact] = 0  # infinities
    bound = 2e-3 + 1e-6 * exact.abs().nan_to_num(posinf=0, neginf=0).max().item()
    worst = error.max().item()
    return [] if worst < bound else [f"log-sum-exp is off by {worst:.2e}, over {bound:.1e}"]
