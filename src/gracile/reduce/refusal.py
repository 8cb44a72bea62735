"""What is said of a unit that has to stay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why units that were chosen stay: the operator that stands against it, and the user's line.

    ``unit`` names the first of ``count`` units by the slice that makes it, such as ``"conv1.weight[3]"``.
    """

    unit: str
    operator: str
    source: str
    reason: str
    count: int = 1

    def __str__(self) -> str:
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        where = ", ".join(filter(None, (self.operator, self.source)))
        return f"{self.unit}{more}: {self.reason} ({where})"
