"""The charts as files for papers and slides, PNG and SVG: recall curves, rank histograms, the map.

<report>-recall.png, .svg      <report>-ranks.png, .svg      <report>-map.png, .svg
    <report>-index.png, .svg       with `--index-compare`
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.errors import MissingExtraError
from contract.files import replace_file
from eval.page import charts
from eval.page.contents import Contents
from eval.page.outcomes import Curve, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 160
NUM_COLUMNS = 3
PANEL_INCHES = (3.4, 2.5)
MARKERS = {"image": "o", "text": "s", "audio": "x"}
# Colours that stay apart for those who see few of them (Okabe and Ito).
COLOURS = {"image": "#0072b2", "text": "#d55e00", "audio": "#6a3d9a"}
INK, GREY = "#1f5f8b", "#575e66"
# An SVG file names its parts by the salt, so that equal charts are equal files; a dollar in a name is no formula.
STYLE: Any = {"svg.hashsalt": "precept", "svg.fonttype": "none", "font.size": 9.0, "text.parse_math": False}


def require() -> None:
    """Refuse to go on without matplotlib."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError('--plots needs matplotlib: install "precept[report]"')


def write(contents: Contents, page: Path) -> tuple[Path, ...]:
    """Write each chart beside the page, as PNG and as SVG; returns the files."""
    import matplotlib

    written = []
    drawn: dict[str, Callable[[Contents], Figure]] = {"recall": _recall, "ranks": _ranks, "map": _map}
    if contents.tradeoff is not None:
        drawn["index"] = _index
    with matplotlib.rc_context(STYLE):
        for name, draw in drawn.items():
            figure = draw(contents)
            for kind in ("png", "svg"):
                file = io.BytesIO()
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
                path = page.with_name(f"{page.stem}-{name}.{kind}")
                replace_file(path, file.getvalue())
                written.append(path)
    return tuple(written)


def _recall(contents: Contents) -> Figure:
    def draw(axes: Axes, found: Curve) -> None:
        ks = np.arange(1, len(found.recalls) + 1)
        axes.plot(ks, found.recalls, color=INK, label="this run")
        axes.plot(ks, found.random, color=GREY, linestyle=":", label="random order")
        axes.set(xscale="log", ylim=(0, 100), xlabel="K", ylabel="recall at K, %")
        ticks = [k for k in charts.CURVE_TICKS if k <= len(ks)]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()

    return _panels(contents, contents.curves, draw)


def _ranks(contents: Contents) -> Figure:
    def draw(axes: Axes, found: Histogram) -> None:
        places = np.arange(len(found.shares))
        axes.bar(places, found.shares, color=INK, label="this run")
        axes.hlines(found.random, places - 0.45, places + 0.45, color="black", label="random order")
        axes.set_xticks(places[::2], [f"{rank:,}" for rank in found.first[::2]])
        axes.set(xlabel="rank, from", ylabel="queries, %")

    return _panels(contents, contents.histograms, draw)


def _map(contents: Contents) -> Figure:
    figure = _figure((7.0, 5.0))
    axes = figure.subplots()
    found = contents.map.projection
    for modality, points in found.points.items():
        x, y = points.T
        axes.scatter(x, y, s=9, marker=MARKERS[modality], color=COLOURS[modality], alpha=0.7, label=modality)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(
        xticks=[], yticks=[], title=f"{contents.tree['dataset']} {contents.tree['split']}, {found.method.upper()}"
    )
    axes.legend(frameon=False)
    return figure


def _index(contents: Contents) -> Figure:
    found = contents.tradeoff
    assert found is not None
    figure = _figure((5.0, 3.4))
    axes = figure.subplots()
    for line, marker in zip(found.lines, itertools.cycle("osD^v")):
        axes.plot(line.rates, line.recalls, marker=marker, label=line.kind)
    axes.set(xscale="log", xlabel="queries per second", ylabel=found.recall, title=found.direction)
    axes.xaxis.set_major_formatter(lambda rate, _: charts.thousands(rate))
    axes.legend(frameon=False)
    return figure


def _panels(contents: Contents, found: tuple[Any, ...], draw: Callable[[Axes, Any], None]) -> Figure:
    """A panel a direction, with one legend for all."""
    num_columns = min(NUM_COLUMNS, len(found))
    num_rows = -(-len(found) // num_columns)
    figure = _figure((PANEL_INCHES[0] * num_columns, PANEL_INCHES[1] * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.remove()
    for axes, outcome, one in zip(grid.flat, contents.outcomes, found, strict=False):
        draw(axes, one)
        axes.set_title(outcome.way.name + ("" if outcome.way.trained else " (untrained)"), loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return figure


def _figure(inches: tuple[float, float]) -> Figure:
    # Not through pyplot, which would look for a screen and keep every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout="constrained")
