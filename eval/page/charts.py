"""Charts as inline SVG, drawn without a style of their own: the page's style sheet colours them, light and dark.

Every chart has a title and a description for those who can't see it; its figures stand in a table beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from contract.manifest import NO_LABEL
from eval.page.outcomes import Curve, Histogram
from eval.page.projection import Projection
from eval.page.tradeoff import Tradeoff

Double = npt.NDArray[np.float64]

# A panel and the area within that holds the data, in units of its own: (left, top, right, bottom).
WIDTH, HEIGHT = 340, 216
LEFT, TOP, RIGHT, BOTTOM = 34, 22, 328, 184
CURVE_TICKS = (1, 2, 5, 10, 20, 50, 100)
SHARE_TICKS = (0, 25, 50, 75, 100)
MARKED_KS = (1, 5, 10)
# Labels of bins that fit beside each other.
MAX_BIN_LABELS = 8

MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 720, 480, 18
WIDE_WIDTH, WIDE_HEIGHT = 440, 270
WIDE_LEFT, WIDE_TOP, WIDE_RIGHT, WIDE_BOTTOM = 40, 12, 428, 238
SHARE_STEPS = ((0.9, 0.02), (0.7, 0.05), (0.4, 0.1), (0.0, 0.2))  # from this floor on, lines so far apart
# The marks of kinds of index, around their place.
SERIES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "m-3.5-3.5h7v7h-7z",
    "m0-5l5 5-5 5-5-5z",
    "m0-4.5l4.5 8h-9z",
    "m0 4.5l4.5-8h-9z",
)
# Classes with a colour of their own; the others share one.
NUM_COLOURS = 8
# Lines of no length with round or square ends, and a cross: the mark of each modality.
MARKS = {"image": "M{x} {y}h0", "text": "M{x} {y}h0", "audio": "M{x} {y}m-2.5-2.5l5 5m-5 0l5-5"}


def recall_panel(name: str, now: Curve, then: Curve | None) -> Markup:
    """Recall over K on a logarithmic axis: this run, an earlier one, and a random order."""
    most = len(now.recalls)
    marks = [k for k in MARKED_KS if k <= most]
    at = ", ".join(f"R@{k} {now.recalls[k - 1]:.1f}" for k in marks)
    random_at = ", ".join(f"R@{k} {now.random[k - 1]:.1f}" for k in marks)
    described = f"Recall in percent rises with K: {at}. A random order would give {random_at}."
    if then is not None:
        before = ", ".join(f"R@{k} {then.recalls[k - 1]:.1f}" for k in marks if k <= len(then.recalls))
        described += f" The earlier run had {before}."
    parts = [_shares(SHARE_TICKS, 100.0)]
    for tick in (tick for tick in CURVE_TICKS if tick <= most):
        parts.append(_x_label(_k_place(tick, most), str(tick)))
    parts.append(_line("random", now.random))
    if then is not None:
        parts.append(_line("then", then.recalls[:most], most))
    parts.append(_line("now", now.recalls))
    for k in marks:
        x, y = _k_place(k, most), _y(now.recalls[k - 1], 100.0)
        parts.append(Markup('<circle class="dot" cx="{}" cy="{}" r="3"/>').format(_short(x), _short(y)))
        label = Markup('<text class="value" x="{}" y="{}" text-anchor="end">{}</text>')
        parts.append(label.format(_short(x - 4), _short(y - 6), f"{now.recalls[k - 1]:.1f}"))
    return _svg(f"{name}: recall at K", described, (WIDTH, HEIGHT), parts)


def rank_panel(name: str, ranks: Histogram) -> Markup:
    """The share of queries in each bin of ranks, and what a random order would have there."""
    top = _nice(max(float(ranks.shares.max()), float(ranks.random.max())))
    num_bins = len(ranks.shares)
    step, every = (RIGHT - LEFT) / num_bins, -(-num_bins // MAX_BIN_LABELS)
    largest = int(ranks.shares.argmax())
    described = (
        f"Share of queries by the rank of their answer. Most, {ranks.shares[largest]:.1f} percent, have "
        f"rank {bin_name(ranks, largest)}; {ranks.shares[0]:.1f} percent have rank 1, "
        f"a random order would give {ranks.random[0]:.1f}."
    )
    parts = [_shares(tuple(np.linspace(0, top, 5)), top)]
    for place in range(num_bins):
        x, y = LEFT + place * step, _y(ranks.shares[place], top)
        bar = '<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>'
        size = (_short(step * 0.72), _short(BOTTOM - y))
        parts.append(Markup(bar).format(_short(x + step * 0.14), _short(y), *size))
        level = f"M{_short(x + step * 0.04)} {_short(_y(ranks.random[place], top))}h{_short(step * 0.92)}"
        parts.append(Markup('<path class="halo" d="{0}"/><path class="level" d="{0}"/>').format(level))
        if place % every == 0:
            parts.append(_x_label(x + step / 2, _short_bin(ranks, place)))
    return _svg(f"{name}: ranks", described, (WIDTH, HEIGHT), parts)


def tradeoff_chart(found: Tradeoff) -> Markup:
    """Recall over queries per second on a logarithmic axis, a line and a mark of its own for each kind of index."""
    powers = [np.log10(line.rates) for line in found.lines]
    low, high = (float(end) for end in (np.floor(min(map(np.min, powers))), np.ceil(max(map(np.max, powers)))))
    floor = min(0.9, float(np.floor(10 * min(min(line.recalls) for line in found.lines)) / 10))
    step = next(step for least, step in SHARE_STEPS if floor >= least)

    def place(power: float, share: float) -> tuple[float, float]:
        x = WIDE_LEFT + 10 + (WIDE_RIGHT - WIDE_LEFT - 20) * (power - low) / max(1.0, high - low)
        return x, WIDE_BOTTOM - (WIDE_BOTTOM - WIDE_TOP) * (share - floor) / (1 - floor)

    grid = Markup('<path class="grid" d="M{} {}H{}"/><text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    label = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts = []
    for share in np.arange(1, floor - step / 2, -step):
        y = place(low, float(share))[1]
        parts.append(grid.format(WIDE_LEFT, _short(y), WIDE_RIGHT, WIDE_LEFT - 6, _short(y + 4), f"{share:.2f}"))
    for power in range(int(low), int(high) + 1):
        parts.append(label.format(_short(place(power, 1)[0]), WIDE_BOTTOM + 17, thousands(10**power)))
    for number, (line, rates) in enumerate(zip(found.lines, powers, strict=True)):
        points = [place(float(rate), recall) for rate, recall in zip(rates, line.recalls, strict=True)]
        parts.append(_series(number, line.kind, points))
    best = "; ".join(f"{line.kind} {max(line.recalls):.3f} at best" for line in found.lines)
    described = f"{found.recall} over queries per second, in the direction {found.direction}: {best}."
    return _svg("Recall and speed by kind of index", described, (WIDE_WIDTH, WIDE_HEIGHT), parts)


def series_key(place: int) -> Markup:
    """The line and mark of a kind of index, for a legend."""
    return Markup('<svg class="key wide" viewBox="0 0 32 16" aria-hidden="true">{}</svg>').format(
        _series(place, "", [(2, 8), (16, 8), (30, 8)], marked=slice(1, 2))
    )


def bin_name(ranks: Histogram, place: int) -> str:
    """As in 33 to 64."""
    first, last = int(ranks.first[place]), int(ranks.last[place])
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def map_chart(found: Projection, classes: Sequence[int]) -> Markup:
    """Every sampled item as a mark: its shape says the modality, its colour that or its class.

    `classes` are the labels that have a colour; style sheet and controls show one layer or the other.
    """
    low, high = _bounds(found)
    layers = []
    for modality, points in found.points.items():
        places = _on_map(points, low, high)
        layers.append(_layer(f"by-modality {modality}", modality, places))
    for modality, points in found.points.items() if classes else ():
        places, labels = _on_map(points, low, high), found.labels[modality]
        others = ~np.isin(labels, classes)
        layers.append(_layer(f"by-label {modality} class-other", modality, places[others]))
        for number, label in enumerate(classes):
            layers.append(_layer(f"by-label {modality} class-{number}", modality, places[labels == label]))
    counts = ", ".join(f"{len(points):,} of {modality}" for modality, points in found.points.items())
    return _svg("Map of the embeddings", f"A mark for each item: {counts}.", (MAP_WIDTH, MAP_HEIGHT), layers)


def mark(modality: str) -> Markup:
    """The mark of a modality, for a legend."""
    path = MARKS[modality].format(x=8, y=8)
    return Markup(
        '<svg class="key" viewBox="0 0 16 16" aria-hidden="true"><path class="{0}" d="{1}"/></svg>'
    ).format(f"mark {modality}", path)


def bars(levels: Sequence[float]) -> Markup:
    """A sound's loudness over time, as the path of its bars."""
    heights = [max(0.6, 9 * level) for level in levels]
    path = "".join(f"M{2 * place + 1} {_short(10 - h)}v{_short(2 * h)}" for place, h in enumerate(heights))
    return Markup('<path d="{}"/>').format(path)


def most_common(labels: Iterable[npt.NDArray[np.int64]]) -> list[int]:
    """The labels that most items have, most common first, as many as there are colours."""
    together = np.concatenate([*labels, np.empty(0, np.int64)])
    values, counts = np.unique(together[together != NO_LABEL], return_counts=True)
    return [int(label) for label in values[np.argsort(-counts, kind="stable")][:NUM_COLOURS]]


def _svg(title: str, described: str, size: tuple[int, int], parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(*size, title, described, Markup("").join(parts))


def _shares(ticks: Sequence[float], top: float) -> Markup:
    """Horizontal lines and their percentages."""
    line = Markup('<path class="grid" d="M{} {}H{}"/><text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    return Markup("").join(
        line.format(LEFT, _short(y := _y(tick, top)), RIGHT, LEFT - 6, _short(y + 4), f"{tick:g}") for tick in ticks
    )


def _x_label(x: float, text: str) -> Markup:
    label = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    return label.format(_short(x), BOTTOM + 17, text)


def _line(kind: str, recalls: Double, most: int = 0) -> Markup:
    points = " ".join(
        f"{_short(_k_place(k, most or len(recalls)))},{_short(_y(value, 100.0))}"
        for k, value in enumerate(recalls, start=1)
    )
    return Markup('<polyline class="{}" points="{}"/>').format(kind, points)


def _k_place(k: float, most: int) -> float:
    # The first label needs room before it.
    return LEFT + 34 + (RIGHT - LEFT - 38) * float(np.log(k) / np.log(max(2, most)))


def _y(value: float, top: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * float(value) / top


def _series(place: int, name: str, points: Sequence[tuple[float, float]], marked: slice = slice(None)) -> Markup:
    """A line through points, and a mark at each of those that are `marked`."""
    line = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
    shape = SERIES[place % len(SERIES)]
    marks = "".join(f"M{_short(x)} {_short(y)}{shape}" for x, y in points[marked])
    return Markup('<g class="series class-{}"><title>{}</title><polyline points="{}"/><path d="{}"/></g>').format(
        place % NUM_COLOURS, name, line, marks
    )


def thousands(number: float) -> str:
    """As in 500, 10k and 2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.0f}{letter}"
    return f"{number:g}"


def _nice(value: float) -> float:
    """The next larger of 4, 8, 20, 40, 60, 80 and 100, which have whole quarters."""
    return next((float(top) for top in (4, 8, 20, 40, 60, 80) if value <= top), 100.0)


def _short_bin(ranks: Histogram, place: int) -> str:
    first, last = int(ranks.first[place]), int(ranks.last[place])
    if last >= 1000:
        return f"{thousands(first)}…"
    return str(first) if first == last else f"{first}\N{EN DASH}{last}"


def _bounds(found: Projection) -> tuple[Double, Double]:
    together = np.concatenate(list(found.points.values()))
    return together.min(axis=0), together.max(axis=0)


def _on_map(points: Double, low: Double, high: Double) -> Double:
    """Places on the map, float64 [n, 2]; both axes are scaled alike."""
    room = np.array([MAP_WIDTH - 2 * MAP_MARGIN, MAP_HEIGHT - 2 * MAP_MARGIN])
    scale = float((room / np.maximum(high - low, 1e-12)).min())
    centred = (points - (low + high) / 2) * min(scale, 1e9)
    places: Double = centred * (1, -1) + (MAP_WIDTH / 2, MAP_HEIGHT / 2)
    return places


def _layer(kind: str, modality: str, places: Double) -> Markup:
    path = "".join(MARKS[modality].format(x=round(x), y=round(y)) for x, y in places)
    return Markup('<path class="mark {}" d="{}"/>').format(kind, path)


def _short(value: float) -> str:
    """One decimal, none where it is 0."""
    return f"{value:.1f}".removesuffix(".0")
