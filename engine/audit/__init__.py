"""Auditing: stored values against fresh forward passes of the model that they come from."""

from engine.audit.draw import draw_samples
from engine.audit.fresh import FreshPasses
from engine.audit.run import AuditReport, TensorVerdict, audit_store, check_images
from engine.audit.verdict import FLOOR_FACTOR

__all__ = [
    "FLOOR_FACTOR",
    "AuditReport",
    "FreshPasses",
    "TensorVerdict",
    "audit_store",
    "check_images",
    "draw_samples",
]
