"""A small network beside the one that is trained: it guesses which domain a feature is from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.algebra import reverse_gradient
from gracile.errors import FileError
from gracile.train import ranks


@final
class Critic:
    """A two-layer classifier of domains with an optimizer (Adam) of its own.

    It is no part of the model: neither its clipping nor its weight decay, nor its file.

    Args:
        features: length of a feature.
        hidden: neurons of the hidden layer.
        rate: learning rate.
        seed: of its first weights; the global generators are left alone.
        device: where the features are.

    >>> critic = Critic(features=3, hidden=8, rate=1e-3, seed=0)
    >>> source, target = torch.zeros(4, 3, requires_grad=True), torch.ones(4, 3)
    >>> critic.loss(source, target, factor=1.0).backward()
    >>> critic.step(ranks=1); bool(source.grad.any())
    True
    """

    def __init__(
        self, features: int, hidden: int, rate: float, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.network = network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=rate)

    def loss(self, source: Tensor, target: Tensor, factor: float) -> Tensor:
        """Mean binary cross-entropy of "is it a source?"; the features get ``-factor`` times its gradient.

        Args:
            source: features of shape (n, d).
            target: features of shape (n, d).
            factor: see :func:`gracile.algebra.reverse_gradient`.
        """
        together = reverse_gradient(torch.cat([source, target]), factor)
        guess = self.network(together.to(next(self.network.parameters()).dtype)).squeeze(1)
        truth = torch.cat([guess.new_ones(len(source)), guess.new_zeros(len(target))])
        return functional.binary_cross_entropy_with_logits(guess, truth)

    def step(self, ranks: int) -> None:
        """Take one step with the gradients of the last backward passes, averaged over ``ranks``."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if not gradients:
            return
        _average_(gradients, ranks)
        self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drop gradients that have been computed and not been used."""
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            FileError: it is that of another critic.
        """
        try:
            self.network.load_state_dict(state["network"])
            own = self.optimizer.state_dict()["param_groups"]
            copies = {
                number: {name: _copy(value) for name, value in moments.items()}
                for number, moments in state["optimizer"].items()
            }
            self.optimizer.load_state_dict({"state": copies, "param_groups": own})
        except (KeyError, AttributeError, RuntimeError, ValueError) as error:
            raise FileError(
                "restoring Adversarial", got=str(error).splitlines()[0], expected="the critic that was saved"
            ) from error


def _average_(gradients: list[Tensor], count: int) -> None:
    """In one exchange: the critic is small, and each exchange waits for the slowest rank."""
    if count == 1:
        return
    flat = ranks.add_(torch.cat([gradient.flatten() for gradient in gradients]), count) / count
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
