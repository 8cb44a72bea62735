"""The journey of a network, end to end: trained, made sparse by groups, cut, fine-tuned, measured.

:func:`slim` composes what the packages below offer, for people who want the result; the outcome is
plain data that is written to JSON and shown as a page or on the terminal.
"""

from gracile.pipeline.outcome import Latency, Layer, Outcome, Snapshot
from gracile.pipeline.present import publish, summarize
from gracile.pipeline.slim import Plan, slim

__all__ = ["Latency", "Layer", "Outcome", "Plan", "Snapshot", "publish", "slim", "summarize"]
