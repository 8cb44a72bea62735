"""What is learned and how it is judged: a loss, a score, and their means over a data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from gracile.errors import UsageError
from gracile.train import ranks
from gracile.train.history import Metrics


@final
@dataclass(frozen=True)
class Task:
    """A loss to minimize and a score to report and select by.

    Args:
        loss: (output, target) -> 0-d tensor, the mean over the batch's items.
        items: (output, target) -> 1-d tensor with one value for each item (sample, token).
        name: what the score is called.
        better: whether higher or lower scores are better.
        summary: mean of the item values -> score.
    """

    loss: Callable[[Any, Any], Tensor]
    items: Callable[[Any, Any], Tensor]
    name: str
    better: Literal["higher", "lower"] = "higher"
    summary: Callable[[float], float] = float

    def improves(self, score: float, best: float | None) -> bool:
        """Whether ``score`` is strictly better than ``best``; a score that is not a number never is."""
        if math.isnan(score):
            return False
        if best is None:
            return True
        return score > best if self.better == "higher" else score < best


def classification() -> Task:
    """Cross-entropy and accuracy. Output (N, classes), target (N,) of class indices.

    >>> output, target = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    >>> classification().items(output, target)
    tensor([1., 0.])
    """
    return Task(
        loss=functional.cross_entropy,
        items=lambda output, target: (output.argmax(1) == target).float(),
        name="accuracy",
    )


def language_modeling() -> Task:
    """Cross-entropy in nats for each token, and perplexity = exp(mean cross-entropy).

    Output (N, T, vocabulary), or a tuple that starts with it (such as logits and a hidden state);
    target (N, T) of token indices.

    >>> task = language_modeling()
    >>> output, target = torch.zeros(1, 3, 8), torch.tensor([[0, 1, 2]])
    >>> round(task.summary(task.items(output, target).mean().item()), 3)
    8.0
    """
    return Task(
        loss=lambda output, target: _token_losses(output, target).mean(),
        items=_token_losses,
        name="perplexity",
        better="lower",
        summary=lambda mean: math.exp(min(mean, 700.0)),  # exp(710) no longer fits a float
    )


def _token_losses(output: Any, target: Tensor) -> Tensor:
    logits = output[0] if isinstance(output, tuple) else output
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Any, task: Task, batch_size: int = 256, rank: int = 0, world: int = 1
) -> Metrics:
    """Mean loss and score of ``model`` on ``data``, in eval mode, on the device of its parameters.

    Every sample counts once, also when ``world`` ranks share the work. The training mode of every
    module is put back.

    >>> from torch.utils.data import TensorDataset
    >>> evaluate(nn.Identity(), TensorDataset(torch.eye(2) * 9, torch.tensor([0, 1])), classification()).score
    1.0
    """
    if len(data) == 0:
        raise UsageError("evaluating", got="an empty data set", expected="samples")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    share = data if world == 1 else Subset(data, range(rank, len(data), world))
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, score, number of items
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # A loader draws a seed from the global generator, unless it is given one of its own.
        for inputs, target in DataLoader(share, batch_size, generator=torch.Generator()):
            target = target.to(device)
            output = model(inputs.to(device))
            items = task.items(output, target).double()  # half precision cannot even count to 3000
            loss = task.loss(output, target).double()
            sums += torch.stack([loss * items.numel(), items.sum(), items.new_tensor(items.numel())])
    finally:
        for module, training in modes:
            module.training = training
    loss, score, count = ranks.add_(sums, world).tolist()
    return Metrics(loss / count, task.summary(score / count))
