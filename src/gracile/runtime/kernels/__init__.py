"""Layers without their zeros, compiled for each instruction set; on torch where there is no compiler."""

from gracile.runtime.kernels.conv import Conv
from gracile.runtime.kernels.linear import Linear
from gracile.runtime.kernels.lstm import Lstm
from gracile.runtime.kernels.native import instruction_sets
from gracile.runtime.kernels.packed import Block, Packed

__all__ = ["Block", "Conv", "Linear", "Lstm", "Packed", "instruction_sets"]
