"""What changed since another run: the ranks of the same queries, then and now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.page.outcomes import Outcomes
from eval.page.tables import known

Rows = npt.NDArray[np.int64]
Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """A direction then and now.

    `positions` int64 [n] are those of the `num_queries` that were ranked both times, `then` and `now` their ranks.
    """

    direction: str
    trained: bool
    num_queries: int
    before: Figures
    after: Figures
    positions: Rows
    then: Rows
    now: Rows
    gallery_then: int
    gallery_now: int

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the recalls and ranks that were measured both times."""
        return known(self.before.keys() & self.after.keys())

    @property
    def num_better(self) -> int:
        """Queries that rank better now."""
        return int((self.now < self.then).sum())

    @property
    def num_worse(self) -> int:
        """Queries that rank worse now."""
        return int((self.now > self.then).sum())

    def moved(self, most: int, *, better: bool) -> Rows:
        """The positions whose rank changed by the largest factor, at most `most`, the largest first."""
        gain = np.log2(self.then / self.now) * (1 if better else -1)
        order = np.lexsort((self.positions, -gain))
        return self.positions[order[gain[order] > 0][:most]]

    def rank_then(self, position: int) -> int | None:
        """The earlier rank of a query; None if it had none."""
        place = int(np.searchsorted(self.positions, position))
        if place == len(self.positions) or self.positions[place] != position:
            return None
        return int(self.then[place])


def changes(before: tuple[Outcomes, ...], after: tuple[Outcomes, ...]) -> dict[str, Change]:
    """Every direction that was measured both times, by name; queries are the same by their id."""
    earlier = {outcome.way.name: outcome for outcome in before}
    return {
        outcome.way.name: _change(earlier[outcome.way.name], outcome)
        for outcome in after
        if outcome.way.name in earlier
    }


def _change(before: Outcomes, after: Outcomes) -> Change:
    ids_then, ids_now = (outcome.queries.ids[outcome.ranks.query_rows] for outcome in (before, after))
    _, then, now = np.intersect1d(ids_then, ids_now, assume_unique=True, return_indices=True)
    order = np.argsort(now)
    then, now = then[order], now[order]
    return Change(
        direction=after.way.name,
        trained=after.way.trained,
        num_queries=len(ids_now),
        before=before.way.figures,
        after=after.way.figures,
        positions=after.ranks.query_rows[now],
        then=before.ranks.ranks[then],
        now=after.ranks.ranks[now],
        gallery_then=before.ranks.num_gallery,
        gallery_now=after.ranks.num_gallery,
    )
