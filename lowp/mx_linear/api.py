"""apply_mx: convert the Linear layers of a model, and audit them."""

from collections.abc import Sequence

import torch
from torch import nn

from lowp.mx_linear.audit import Audit, audit_layers, reference_outputs
from lowp.mx_linear.backend import config, load_torchao
from lowp.mx_linear.checks import check_layers, check_not_compiled
from lowp.mx_linear.recipes import recipe_for
from lowp.mx_linear.select import linear_layers, select


@torch.no_grad()
def apply_mx(
    model: nn.Module,
    bits: int = 8,
    scope: str = "mlp",
    kernel: str = "auto",
    late_layers: int = 0,
    skip: Sequence[str] = (),
    format: str | None = None,
) -> Audit:
    """Convert the weights of `model`'s Linear layers in place; call it before torch.compile.

    bits: 8 (MXFP8, E4M3) or 4 (MXFP4). format: "mxfp8", "mxfp4", or "nvfp4" with bits=4.
    scope: "mlp" (mlp, fc1, fc2), "attn" (qkv, to_q, to_k, to_v, q_proj, k_proj, v_proj, out, out_proj) or "all" Linear
    layers; the names match whole components of a layer's path.
    kernel: "auto" (the GPU's MX units; "cutlass" means the same), "emulated" (dequantize and multiply in BF16: its
    accuracy, no speed) or "float8-row" (E4M3 with a scale per row, fast on SM89 and newer; 8 bits).
    Emulated NVFP4 converts weights alone, activations stay BF16.
    late_layers: convert only layers in the last N entries of a `blocks` list; 0 means everywhere.
    skip: components of paths that stay BF16. With 4 bits `final.*proj` stays BF16 too.

    Returns the audit of the layers converted. Raises ValueError or TypeError for a mistake in the call or the model,
    also if no layer is selected; NotImplementedError if the kernel cannot run on the model's device; ImportError
    without torchao; RuntimeError if torchao left a selected layer as it was.
    """
    check_not_compiled(model)
    layers = linear_layers(model)
    recipe = recipe_for(bits, kernel, format)
    names = select(layers, [name for name, _ in model.named_modules()], scope, late_layers, skip, bits)
    selected = {name: layers[name] for name in names}
    check_layers(selected, recipe)
    torchao = load_torchao()
    references = reference_outputs(selected)
    torchao.quantize_(model, config(torchao, recipe), filter_fn=lambda _module, name: name in selected)
    return Audit(recipe.format, recipe.kernel, scope, late_layers, tuple(audit_layers(model, references, recipe)))
