"""Recall against speed and size, across the kinds of index: what a plot of the trade-off is drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from contract.errors import ConfigError
from eval.gallery import Gallery
from eval.indexes import KINDS, Index
from eval.indexes.knobs import Settings, put
from eval.sample import Recalls, Sample


@dataclass(frozen=True, kw_only=True)
class Point:
    """How an index does with these settings on queries that are put all at once."""

    settings: Settings
    recalls: Recalls
    queries_per_second: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """An index and its points, from the quickest on; without a gallery, `skipped` says why there is none.

    The gallery is without its `index`: as many as there are kinds need not fit in memory at once.
    """

    kind: str
    gallery: Gallery | None
    points: tuple[Point, ...] = ()
    skipped: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tradeoff:
    """The curves of every kind in one direction."""

    direction: str
    num_queries: int
    curves: tuple[Curve, ...]


def compare(direction: str, asked: Index, opened: Callable[[Index], Gallery], sample: Sample) -> Tradeoff:
    """Try every kind, and the one that was `asked` for; `opened` gives the tuned index of a kind."""
    curves = tuple(_curve(index, opened, sample) for index in dict.fromkeys((*KINDS.values(), asked)))
    return Tradeoff(direction=direction, num_queries=len(sample.queries), curves=curves)


def _curve(index: Index, opened: Callable[[Index], Gallery], sample: Sample) -> Curve:
    try:
        built = opened(index)
    except ConfigError as error:  # a gallery too small for it, for one
        return Curve(kind=index.kind, gallery=None, skipped=str(error))
    points: list[Point] = []
    for settings in _settings(built):
        put(built.index, settings)
        recalls = sample.recalls(built)
        rate = sample.queries_per_second(built, len(sample.queries))
        points.append(Point(settings=settings, recalls=recalls, queries_per_second=rate))
        if recalls.all_at_k == 1:
            break
    return Curve(kind=index.kind, gallery=replace(built, index=None), points=tuple(points))


def _settings(built: Gallery) -> list[Settings]:
    """The first knob turned up in doubling steps, the others as they were tuned."""
    if not built.knobs:
        return [{}]
    first = built.knobs[0]
    steps = [1 << step for step in range(first.most.bit_length()) if 1 << step < first.most]
    return [built.settings | {first.name: value} for value in (*steps, first.most)]
