"""Settings of the whole test suite, and the Markdown files whose code is run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import torch
from hypothesis import settings
from reducible.operators import declare
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

torch.set_num_threads(1)
declare()  # transformers imports torchvision where it finds one
settings.register_profile("gracile", deadline=None, derandomize=True)
settings.load_profile("gracile")

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()
