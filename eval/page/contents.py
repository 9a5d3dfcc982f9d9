"""Everything a page says, gathered from a measurement before a word of HTML is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from eval import report
from eval.page import charts, tables
from eval.page.changes import Change, changes
from eval.page.examples import KINDS, Example, Hit, examples
from eval.page.media import MAX_BYTES, Exhibit, Media
from eval.page.outcomes import Curve, Histogram, Outcomes, curve, histogram, outcomes
from eval.page.projection import Method, Projection, project
from eval.page.routes import Route, Steps, steps
from eval.page.tables import Table
from eval.page.tradeoff import Tradeoff, tradeoff
from eval.retrieval import Measured


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A direction's chart."""

    direction: str
    trained: bool
    chart: Markup


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """What changed since another run; `new` directions were not measured then."""

    run: str
    changes: tuple[Change, ...]
    new: tuple[str, ...]

    @property
    def moved(self) -> bool:
        """Whether a query ranks better or worse than then."""
        return any(change.num_better or change.num_worse for change in self.changes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """The embedding map, its chart, and the classes that have a colour, with how many points each has."""

    projection: Projection
    chart: Markup
    classes: tuple[tuple[int, int], ...]
    num_other: int


@dataclass(frozen=True, kw_only=True)
class Via:
    """The item between a query and a hit of an untrained direction."""

    exhibit: Exhibit
    route: Route


@dataclass(frozen=True, kw_only=True)
class ShownHit:
    """A hit with what it is of."""

    hit: Hit
    exhibit: Exhibit
    via: Via | None


@dataclass(frozen=True, kw_only=True)
class Card:
    """An example with what its query, hits and answer are of."""

    example: Example
    query: Exhibit
    hits: tuple[ShownHit, ...]
    answer: ShownHit | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """A page; `tree` is the JSON report, from which everything in it that has no place of its own is shown too."""

    tree: dict[str, Any]
    figures: Table
    beside: tuple[Table, ...]
    outcomes: tuple[Outcomes, ...]
    curves: tuple[Curve, ...]
    recall_panels: tuple[Panel, ...]
    recall_table: Table
    histograms: tuple[Histogram, ...]
    rank_panels: tuple[Panel, ...]
    compared: Compared | None
    map: Map
    steps: tuple[Steps, ...]
    tradeoff: Tradeoff | None
    tradeoff_chart: Markup | None
    cards: tuple[Card, ...]
    others: tuple[Table, ...]
    notes: tuple[str, ...]
    media: Media


def gather(
    measured: Measured, *, since: Measured | None = None, method: Method = "pca", max_bytes: int = MAX_BYTES
) -> Contents:
    """The contents of a page of `measured`; `since` is another run's measurement of the same split.

    Pictures and sounds take `max_bytes` at most.
    """
    split, tree = measured.split, report.as_tree(measured)
    now = outcomes(measured)
    then = () if since is None else outcomes(since)
    changed = changes(then, now)
    ways = {(outcome.way.queries, outcome.way.gallery): outcome for outcome in now}
    curves = {outcome.way.name: curve(outcome) for outcome in now}
    earlier = {outcome.way.name: curve(outcome) for outcome in then}
    histograms = {outcome.way.name: histogram(outcome) for outcome in now}
    media = Media(split, max_bytes)
    found = [example for way in now for example in examples(way, split, ways, changed.get(way.way.name))]
    return Contents(
        tree=tree,
        figures=tables.figures(tree),
        beside=tuple(tables.figures(other, name) for name, other in tree.get("beside", {}).items()),
        outcomes=now,
        curves=tuple(curves.values()),
        recall_panels=tuple(
            _panel(way, charts.recall_panel(way.way.name, curves[way.way.name], earlier.get(way.way.name)))
            for way in now
        ),
        recall_table=tables.recalls(measured.directions, tuple(curves.values())),
        histograms=tuple(histograms.values()),
        rank_panels=tuple(_panel(way, charts.rank_panel(way.way.name, histograms[way.way.name])) for way in now),
        compared=None if since is None else _compared(since, changed, now),
        map=_map(project(split, method)),
        steps=steps(ways, split),
        tradeoff=(compared := tradeoff(tree)),
        tradeoff_chart=None if compared is None else charts.tradeoff_chart(compared),
        cards=_cards(found, media),
        others=tables.others(tree),
        notes=_notes(tree),
        media=media,
    )


def _panel(outcome: Outcomes, chart: Markup) -> Panel:
    return Panel(direction=outcome.way.name, trained=outcome.way.trained, chart=chart)


def _compared(since: Measured, changed: dict[str, Change], now: Sequence[Outcomes]) -> Compared:
    return Compared(
        run=str(since.student.run),
        changes=tuple(changed.values()),
        new=tuple(outcome.way.name for outcome in now if outcome.way.name not in changed),
    )


def _map(found: Projection) -> Map:
    classes = charts.most_common(found.labels.values())
    counts = {label: sum(int((labels == label).sum()) for labels in found.labels.values()) for label in classes}
    return Map(
        projection=found,
        chart=charts.map_chart(found, classes),
        classes=tuple(counts.items()),
        num_other=sum(map(len, found.points.values())) - sum(counts.values()),
    )


def _cards(found: Sequence[Example], media: Media) -> tuple[Card, ...]:
    """The cards in the order of the examples.

    Media are encoded example by example in turns of directions and kinds, so that a page that fills up lacks some
    of everything and not all of the last direction.
    """
    turns: dict[tuple[str, str], int] = {}
    order = []
    for place, example in enumerate(found):
        turn = turns[example.direction, example.kind] = turns.get((example.direction, example.kind), -1) + 1
        order.append((turn, KINDS.index(example.kind), place))
    cards = {place: _card(found[place], media) for _, _, place in sorted(order)}
    return tuple(cards[place] for place in range(len(found)))


def _card(example: Example, media: Media) -> Card:
    def shown(hit: Hit) -> ShownHit:
        route, via = hit.route, None
        if route is not None:
            via = Via(exhibit=media.exhibit(route.middle, route.position), route=route)
        return ShownHit(hit=hit, exhibit=media.exhibit(example.gallery, hit.position), via=via)

    return Card(
        example=example,
        query=media.exhibit(example.queries, example.position),
        hits=tuple(map(shown, example.hits)),
        answer=None if example.answer is None else shown(example.answer),
    )


def _notes(tree: dict[str, Any]) -> tuple[str, ...]:
    notes, training = [], tree["training"]
    if tree["folds"] > 1:
        notes.append(
            f"Figures, curves and ranks are of {tree['folds']} folds, each with a gallery of its own; what is said "
            "of single queries is of one gallery of all items."
        )
    if any(found["intervals"] for found in tree["directions"].values()):
        notes.append(
            "Small figures below others are their 95% intervals, by a bootstrap over queries; those that share an "
            "item are drawn together."
        )
    notes += [
        f"{count:,} {modality} items could not be decoded when the store was made, and are left out."
        for modality, count in tree["quarantined"].items()
        if count
    ]
    if "rerank" in tree:
        notes.append(
            "Scores of K: the K nearest by embedding are put in the order of a cross-encoder's scores, the others "
            "stay behind them as they were. Curves, ranks and gallery are of the embeddings alone."
        )
    for name, figures in tree.get("rerank", {}).items():
        ties = f"; in {figures['ties']:,} queries others tie with it by score" if figures["ties"] else ""
        notes.append(
            f"{name}, scores of {figures['k']}: {figures['reachable']:.1f} percent of the queries have a positive "
            f"among the {figures['k']}{ties}."
        )
    for name, figures in tree["directions"].items():
        if count := figures["queries_without_positive"]:
            notes.append(f"{name}: {count:,} queries have no positive in the gallery, and are left out.")
        if count := figures["ties"]:
            notes.append(f"{name}: in {count:,} queries others tie with the best positive; ids order them.")
    if training["compared"]:
        notes.append(f"No item is among the training items of {', '.join(training['compared'])}.")
    notes += [
        f"Not compared with the training items of {path}, which is gone or damaged." for path in training["missing"]
    ]
    notes += [
        f"{count:,} {modality} items have a file of training under another name, byte for byte."
        for modality, count in training["copies"].items()
    ]
    return tuple(notes)
