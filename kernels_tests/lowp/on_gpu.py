"""The decode kernel on a GPU, in any launch, against the float64 reference."""

import math

import pytest
import torch

from lowp.jit.device import device_of
from lowp.paged import tight
from lowp.paged.reference import reference
from lowp.sink_decode import launch, sink_decode
from lowp.sink_decode.call import Call
from lowp.sink_decode.resources import Launch, fit

# Every form, and an odd cluster; stages and CTAs an SM are reduced to what fits.
LAUNCHES = {
    "chosen": None,
    "cluster 8": Launch(8, 3, 2, 2, cluster=8),
    "cluster 8, long steps": Launch(8, 3, 4, 1, cluster=8),
    "cluster 8, steps of 3 tiles": Launch(8, 2, 3, 2, cluster=8),
    "cluster 6, 12 warps": Launch(12, 2, 2, 1, cluster=6),
    "cluster 5": Launch(4, 3, 2, 4, cluster=5),
    "cluster 3, 5 CTAs an SM": Launch(4, 2, 2, 5, cluster=3),
    "one CTA, 2 warps": Launch(2, 3, 2, 8, cluster=1),
    "one CTA, 1 warp": Launch(1, 2, 2, 16, cluster=1),
    "planned": Launch(8, 3, 2, 2, cluster=0),
    "planned, alone": Launch(8, 2, 4, 1, cluster=0),
    "planned, short splits": Launch(8, 2, 2, 2, cluster=0, least_steps=1),
    "planned, 4 warps": Launch(4, 3, 2, 4, cluster=0),
    "planned, 2 warps": Launch(2, 2, 2, 8, cluster=0),
}


def run(arguments, fixed=None, workspace=None):
    """Run the kernel in the chosen launch, or in `fixed` as far as it fits: (out, lse), both NaN before."""
    q = arguments["q"]
    out, lse = torch.full_like(q, math.nan), torch.full(q.shape[:-1], math.nan, device=q.device)
    if fixed is None:
        sink_decode(**arguments, out=out, lse=lse, workspace=workspace)
    else:
        launch.run(Call(**arguments, out=out, lse=lse, workspace=workspace), fitted(arguments, fixed))
    return out, lse


def fitted(arguments, fixed):
    """Fit a launch to the device and the variant; skip where it needs clusters that the device lacks."""
    device = device_of(arguments["q"].device)
    if fixed.cluster > 1 and not device.clusters:
        pytest.skip(f"{device.arch} has no clusters")
    call = Call(**arguments, out=arguments["q"], lse=None, workspace=None)
    return fit(launch.variant_of(call), fixed, device)


def check(arguments, fixed=None):
    out, lse = run(arguments, fixed)
    exact, exact_lse = reference(**arguments)
    assert tight.problems(out, exact) + tight.lse_problems(lse, exact_lse) == []
