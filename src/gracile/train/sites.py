"""Sites whose machines are close to each other: single precision within a site, few bits between sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch.distributed as dist
from torch import Tensor

from gracile.errors import UsageError
from gracile.train.exchange import Exchange
from gracile.train.ranks import PATIENCE


@final
@dataclass(frozen=True)
class Sites:
    """The ranks of this site, and the first ranks of all sites; ``between`` is None for the others."""

    site: dist.ProcessGroup | None
    ranks: int
    between: Exchange | None

    @staticmethod
    def of(site: int) -> Sites:
        """Make the groups; every rank calls it at the same time, with as many ``site`` ranks to a site."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        if ranks % site:
            raise UsageError(
                "averaging gradients", got=f"site={site!r}", expected=f"a divisor of the {ranks} ranks"
            )

        def group(members: Sequence[int]) -> dist.ProcessGroup:
            return dist.new_group(list(members), backend="gloo", timeout=PATIENCE)

        first = group(range(0, ranks, site))  # every rank makes every group
        own = None
        for start in range(0, ranks, site) if site > 1 else ():
            made = group(range(start, start + site))
            own = made if start <= rank < start + site else own
        return Sites(own, site, Exchange(first) if rank % site == 0 else None)

    def gather_(self, values: Tensor) -> None:
        """The mean of the site, for its first rank."""
        if self.site is not None:
            dist.reduce(values, group=self.site, group_dst=0)
            values.div_(self.ranks)

    def spread_(self, values: Tensor) -> None:
        """What the site's first rank has, to all of the site."""
        if self.site is not None:
            dist.broadcast(values, group=self.site, group_src=0)
