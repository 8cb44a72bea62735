"""The journey of a network, end to end: trained, made sparse by groups, cut, fine-tuned, measured.

:func:`slim` learns which units are not needed, :func:`slim_to` cuts down to a budget, and :func:`to_latency`
fits any network to a latency measured on this machine, without training. The outcome is plain data that is
written to JSON and shown as a page or on the terminal.
"""

from gracile.pipeline.budget import Budget
from gracile.pipeline.compose import Leg, Passage, compose
from gracile.pipeline.journey import Plan
from gracile.pipeline.latency import Fitted, Scouted, fit_to, scout, to_latency
from gracile.pipeline.lowrank import LowRankFit, low_rank_to_latency, ranks_within
from gracile.pipeline.outcome import Latency, Layer, Outcome, Snapshot
from gracile.pipeline.present import publish, summarize
from gracile.pipeline.rounds import slim_to
from gracile.pipeline.slim import slim
from gracile.pipeline.stages import Bits, Elements, LowRank, Stage, State, Units, check

__all__ = [
    "Bits",
    "Budget",
    "Elements",
    "Fitted",
    "Latency",
    "Layer",
    "Leg",
    "LowRank",
    "LowRankFit",
    "Outcome",
    "Passage",
    "Plan",
    "Scouted",
    "Snapshot",
    "Stage",
    "State",
    "Units",
    "check",
    "compose",
    "fit_to",
    "low_rank_to_latency",
    "publish",
    "ranks_within",
    "scout",
    "slim",
    "slim_to",
    "summarize",
    "to_latency",
]
