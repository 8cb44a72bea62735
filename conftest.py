"""Settings of the whole test suite, and the Markdown files whose code is run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same bits every time on a GPU, too

if native := os.environ.get("GRACILE_NATIVE"):  # a folder with another build of the extension: make sanitize
    import importlib.util
    import sys
    from pathlib import Path

    import gracile

    (extension,) = Path(native).glob("_native*.so")
    spec = importlib.util.spec_from_file_location("gracile._native", extension)
    sys.modules[spec.name] = gracile._native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gracile._native)

from importlib.util import find_spec

import torch
from hypothesis import settings
from reducible.operators import declare
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

torch.set_num_threads(1)
torch.backends.cudnn.deterministic = True
declare()  # transformers imports torchvision where it finds one
settings.register_profile("gracile", deadline=None, derandomize=True)
settings.load_profile("gracile")

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()

collect_ignore_glob = ["tests/**/*_run.py"]  # scripts that tests start, some under torchrun
if find_spec("triton") is None:
    collect_ignore_glob.append("src/gracile/wire/gpu.py")
