"""Training: methods that hook into any loop, and a small loop of our own.

:func:`fit` trains a network on one process or many, selects on validation data, and resumes exactly
after a crash. A :class:`Method` takes part through hooks: :class:`Structure` learns structured
sparsity, :class:`Freeze` keeps it, :class:`Force` turns filters towards each other, :class:`SmoothOut`
looks for wide minima. The same methods run in Lightning
(:mod:`gracile.train.lightning`) and in the Hugging Face Trainer (:mod:`gracile.train.huggingface`).
"""

from gracile.train.activations import Activations
from gracile.train.adapt import Adapt
from gracile.train.alignments import MMD, Adversarial, Alignment, Coral, Entropy
from gracile.train.batch_norm import adapt_batch_norm
from gracile.train.capture import Captured, captured
from gracile.train.checkpoint import Checkpoints
from gracile.train.clip_rank import ClipRank
from gracile.train.fit import fit
from gracile.train.force import Force, attractions_of
from gracile.train.freeze import Freeze
from gracile.train.guided import Guided
from gracile.train.history import Epoch, History, Metrics
from gracile.train.log import JsonLines, Logger, TensorBoard
from gracile.train.method import Method, Run
from gracile.train.reach import Floor, Reach
from gracile.train.schedule import (
    Schedule,
    constant,
    cosine,
    cubic,
    logistic_ramp,
    sqrt_decay,
    step,
    tanh_ramp,
    until,
    warmup,
)
from gracile.train.sharpness import sharpness
from gracile.train.smoothout import SmoothOut, smoothout
from gracile.train.splits import Splits
from gracile.train.structure import Structure
from gracile.train.surgery import Prune, Surgery
from gracile.train.task import Task, classification, evaluate, language_modeling
from gracile.train.terngrad import TernGradState, Traffic, terngrad_hook
from gracile.train.terngrad_fsdp import TernGradReduceScatter
from gracile.train.terngrad_method import TernGrad
from gracile.train.throughput import Throughput
from gracile.train.winners import Winners, insert_after, insert_winners, winner_rates
from gracile.train.workers import Workers

__all__ = [
    "MMD",
    "Activations",
    "Adapt",
    "Adversarial",
    "Alignment",
    "Captured",
    "Checkpoints",
    "ClipRank",
    "Coral",
    "Entropy",
    "Epoch",
    "Floor",
    "Force",
    "Freeze",
    "Guided",
    "History",
    "JsonLines",
    "Logger",
    "Method",
    "Metrics",
    "Prune",
    "Reach",
    "Run",
    "Schedule",
    "SmoothOut",
    "Splits",
    "Structure",
    "Surgery",
    "Task",
    "TensorBoard",
    "TernGrad",
    "TernGradReduceScatter",
    "TernGradState",
    "Throughput",
    "Traffic",
    "Winners",
    "Workers",
    "adapt_batch_norm",
    "attractions_of",
    "captured",
    "classification",
    "constant",
    "cosine",
    "cubic",
    "evaluate",
    "fit",
    "insert_after",
    "insert_winners",
    "language_modeling",
    "logistic_ramp",
    "sharpness",
    "smoothout",
    "sqrt_decay",
    "step",
    "tanh_ramp",
    "terngrad_hook",
    "until",
    "warmup",
    "winner_rates",
]
