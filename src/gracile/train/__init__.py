"""Training: methods that hook into any loop, and a small loop of our own.

:func:`fit` trains a network on one process or many, selects on validation data, and resumes exactly
after a crash. A :class:`Method` takes part through hooks: :class:`Structure` learns structured
sparsity, :class:`Freeze` keeps it. The same methods run in Lightning
(:mod:`gracile.train.lightning`) and in the Hugging Face Trainer (:mod:`gracile.train.huggingface`).
"""

from gracile.train.checkpoint import Checkpoints
from gracile.train.fit import fit
from gracile.train.freeze import Freeze
from gracile.train.history import Epoch, History, Metrics
from gracile.train.log import JsonLines, Logger, TensorBoard
from gracile.train.method import Method, Run
from gracile.train.reach import Floor, Reach
from gracile.train.schedule import Schedule, constant, cosine, cubic, step, warmup
from gracile.train.splits import Splits
from gracile.train.structure import Structure
from gracile.train.task import Task, classification, evaluate, language_modeling

__all__ = [
    "Checkpoints",
    "Epoch",
    "Floor",
    "Freeze",
    "History",
    "JsonLines",
    "Logger",
    "Method",
    "Metrics",
    "Reach",
    "Run",
    "Schedule",
    "Splits",
    "Structure",
    "Task",
    "TensorBoard",
    "classification",
    "constant",
    "cosine",
    "cubic",
    "evaluate",
    "fit",
    "language_modeling",
    "step",
    "warmup",
]
