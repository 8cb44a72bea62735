"""What runs networks on a CPU today: the engines that a claim of speed is measured against."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import nn

from gracile.errors import GracileError, RefusedError, UsageError
from gracile.reduce.copies import undisturbed
from gracile.reduce.probes import copied, leaves
from gracile.reduce.verify import difference

Call = Callable[..., object]
TOLERANCE = 1e-4
"""Largest error of an engine, over the largest output: one that computes something else is no rival."""


class Engine(ABC):
    """One way to run networks, or single layers, on this machine's processor.

    A new one names itself and its package, and writes :meth:`start`.

    Attributes:
        name: for people; commands take it in any case, without spaces and signs.
        package: that has to be installed.
        hint: how to install it.
        dense: whether it multiplies zeros like other numbers, so that it can be what others are measured by.
        patient: whether preparing a network takes so long that it is left out unless it is asked for.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    hint: ClassVar[str] = ""
    dense: ClassVar[bool] = True
    patient: ClassVar[bool] = False

    @property
    def version(self) -> str | None:
        """Of the package; None if it is not installed."""
        if importlib.util.find_spec(self.package) is None:
            return None
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    @final
    def prepare(self, model: nn.Module, *example: Any, threads: int = 1) -> Call:
        """A function that runs ``model`` on inputs of the example's shapes and types.

        It uses no more threads than allowed and computes what the model does, within :data:`TOLERANCE`. What
        it returns may lie in memory that its next call writes to, and inputs have to be contiguous: that
        is how engines are fastest.

        Args:
            model: in evaluation mode; a single layer will do.
            example: tensors on the CPU, or tuples of them.
            threads: that a call may use.

        Raises:
            UsageError: the engine is not installed, the model is in training mode, or no thread is allowed.
            RefusedError: the engine cannot run the model, or computes something else; the message says why.
        """
        operation = f"preparing {type(model).__name__} for {self.name}"
        if self.version is None:
            raise UsageError(
                operation, got=f"no package {self.package}", expected="it to be installed", hint=self.hint
            )
        if threads < 1 or model.training:
            raise UsageError(
                operation,
                got=f"a model in {'training' if model.training else 'evaluation'} mode, {threads} threads",
                expected="a model in evaluation mode, and 1 thread or more",
            )
        with undisturbed(model):
            want = list(leaves(model(*copied((example, {}))[0])))
        try:
            with torch.inference_mode():
                call = self.start(model, example, threads)
                gap = difference(want, list(leaves(call(*example))))
        except GracileError:
            raise
        except Exception as error:  # every engine has its own ways to say no
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise RefusedError(operation, got=said, expected="a model that it can run") from error
        if not gap <= TOLERANCE:
            raise RefusedError(
                operation, got=f"a relative error of {gap:.1e}", expected=f"at most {TOLERANCE:.0e}"
            )
        return call

    @abstractmethod
    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Call:
        """The function that :meth:`prepare` checks; it may raise whatever it likes."""


def limited(function: Call, threads: int) -> Call:
    """``function`` without gradients, and with so many of torch's threads.

    >>> limited(torch.get_num_threads, 2)()
    2
    """

    def run(*inputs: Any) -> object:
        before = torch.get_num_threads()
        if before == threads and torch.is_inference_mode_enabled():  # while measuring: costs next to nothing
            return function(*inputs)
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                return function(*inputs)
        finally:
            torch.set_num_threads(before)

    return run
