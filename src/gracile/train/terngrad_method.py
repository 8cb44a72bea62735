"""Gradients in few bits as a method of :func:`gracile.train.fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from torch.nn.parallel import DistributedDataParallel

from gracile.train.method import Method, Run
from gracile.train.terngrad import TernGradState, terngrad_hook
from gracile.wire.modes import Mode, Wire


@final
class TernGrad(Method):
    """Register :func:`gracile.train.terngrad_hook` where several ranks train; alone there is nothing to send.

    Args:
        mode, clip, smallest, exempt, site, link, seed: see :class:`gracile.train.TernGradState`. There is no
            feedback: residuals differ from rank to rank, and checkpoints hold what ranks have in common.

    Attributes:
        state: once training has started; its ``traffic`` tells what was sent.

    Raises:
        UsageError: arguments that make no sense, when training starts.

    >>> method = TernGrad("exact", exempt=["fc"])
    >>> method.state is None
    True
    """

    def __init__(
        self,
        mode: Mode | Literal["auto"] = "auto",
        *,
        clip: float | None = 2.5,
        smallest: int = 1024,
        exempt: Sequence[str] = (),
        site: int = 1,
        link: Wire | None = None,
        seed: int = 0,
    ) -> None:
        self._options: dict[str, Any] = {
            "mode": mode,
            "clip": clip,
            "smallest": smallest,
            "exempt": exempt,
            "site": site,
            "link": link,
            "seed": seed,
        }
        self.state: TernGradState | None = None

    def start(self, run: Run) -> None:
        self.state = TernGradState(run.model, **self._options)
        if isinstance(run.wrapper, DistributedDataParallel):
            run.wrapper.register_comm_hook(self.state, terngrad_hook)

    def state_dict(self) -> dict[str, Any]:
        return self.state.state_dict() if self.state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.state and state:
            self.state.load_state_dict(state)
