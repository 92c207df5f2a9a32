"""A seed, or a label map -> a simulated head (susceptibility, relaxation, labels) and its magnetic field."""

from models.head.anatomy import simulate_head
from models.head.field import fields
from models.head.labelmap import FREESURFER, head_from_labels, resample_labels
from models.head.tissues import BRAIN, DEEP_GREY, TISSUES, Head, Tissue

__all__ = [
    "BRAIN",
    "DEEP_GREY",
    "FREESURFER",
    "TISSUES",
    "Head",
    "Tissue",
    "fields",
    "head_from_labels",
    "resample_labels",
    "simulate_head",
]
