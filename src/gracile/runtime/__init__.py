"""What runs a network: targets of :func:`gracile.compile`, and the engines that they are measured against."""

from gracile.runtime.compare import ENGINES, Comparison, Measured, compare, engines
from gracile.runtime.engines import Engine
from gracile.runtime.modules import SparseConv2d, SparseLinear, sparse_modules_
from gracile.runtime.onnx import OnnxProgram, OnnxRuntime
from gracile.runtime.onnx_engines import DeepSparse, OnnxEngine, OnnxRuntimeEngine, OpenVino
from gracile.runtime.plan import Choice, Plan
from gracile.runtime.program import SparseProgram, load
from gracile.runtime.roster import Roster
from gracile.runtime.sparse_cpu import SparseCPU
from gracile.runtime.sparse_engine import SparseKernels
from gracile.runtime.torch_engines import ChannelsLast, Compiled, Torch

__all__ = [
    "ENGINES",
    "ChannelsLast",
    "Choice",
    "Comparison",
    "Compiled",
    "DeepSparse",
    "Engine",
    "Measured",
    "OnnxEngine",
    "OnnxProgram",
    "OnnxRuntime",
    "OnnxRuntimeEngine",
    "OpenVino",
    "Plan",
    "Roster",
    "SparseCPU",
    "SparseConv2d",
    "SparseKernels",
    "SparseLinear",
    "SparseProgram",
    "Torch",
    "compare",
    "engines",
    "load",
    "sparse_modules_",
]
