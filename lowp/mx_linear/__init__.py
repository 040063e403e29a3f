"""Linear layers in MXFP8, MXFP4, NVFP4 or float8, through torchao, with an audit of every layer changed."""

from lowp.mx_linear.api import apply_mx
from lowp.mx_linear.audit import Audit, LayerAudit

__all__ = ["Audit", "LayerAudit", "apply_mx"]
