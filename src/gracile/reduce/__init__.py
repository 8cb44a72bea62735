"""Making a network smaller and proving that it still computes the same.

A cut says what stays; :func:`apply_` carries it out and :func:`save` writes it down. :func:`remove` does the
whole job on a copy: watch, choose, fold constants, cut, verify, and refuse what cannot be proven.
"""

from gracile.reduce.apply import apply_
from gracile.reduce.attention import Attention, make_attention_explicit_
from gracile.reduce.budget import Limits, parameters_left, within
from gracile.reduce.bypass import Bypass, Silent
from gracile.reduce.drop import drop
from gracile.reduce.export import export_onnx
from gracile.reduce.factorize import factorize, pairs
from gracile.reduce.fold import Fold, fold
from gracile.reduce.importance import Importance, activation, batch_norm_scale, magnitude, taylor
from gracile.reduce.quantize import Quantized, quantize
from gracile.reduce.ranks import left_alone, paying, ranks_by_energy
from gracile.reduce.refusal import Refusal
from gracile.reduce.remove import Reduction, remove
from gracile.reduce.replay import UnprovenError
from gracile.reduce.select import dead, random_units, smallest
from gracile.reduce.silence import dead_blocks
from gracile.reduce.store import load, save
from gracile.reduce.verify import Verdict, verify

__all__ = [
    "Attention",
    "Bypass",
    "Fold",
    "Importance",
    "Limits",
    "Quantized",
    "Reduction",
    "Refusal",
    "Silent",
    "UnprovenError",
    "Verdict",
    "activation",
    "apply_",
    "batch_norm_scale",
    "dead",
    "dead_blocks",
    "drop",
    "export_onnx",
    "factorize",
    "fold",
    "left_alone",
    "load",
    "magnitude",
    "make_attention_explicit_",
    "pairs",
    "parameters_left",
    "paying",
    "quantize",
    "random_units",
    "ranks_by_energy",
    "remove",
    "save",
    "smallest",
    "taylor",
    "verify",
    "within",
]
