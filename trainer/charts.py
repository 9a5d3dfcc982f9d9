"""Curves: drawn with Braille dots in a terminal, and with matplotlib into a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.errors import MissingExtraError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# A character has 4 rows and 2 columns of dots: the bit of each.
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
BRAILLE = 0x2800
# Of a terminal: blue, yellow, green, magenta, cyan, red.
COLOURS = (34, 33, 32, 35, 36, 31)
# Of the PNG, in inches.
CHART_SIZE = (5.0, 3.0)
COLUMNS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """What one run measured of one figure: steps and values, float64 [n] each, n > 0, finite, steps ascending."""

    run: str
    steps: Floats
    values: Floats


def drawn(curves: Sequence[Curve], width: int, height: int, *, coloured: bool) -> list[str]:
    """The lines of a chart of so many characters, without its labels: one colour for each curve."""
    dots = np.zeros((height, width), np.int64)
    owner = np.zeros((height, width), np.int64)
    first, last = _range([curve.steps for curve in curves])
    bottom, top = _range([curve.values for curve in curves])
    for number, curve in enumerate(curves):
        columns = np.rint((curve.steps - first) / (last - first) * (2 * width - 1)).astype(np.int64)
        rows = np.rint((top - curve.values) / (top - bottom) * (4 * height - 1)).astype(np.int64)
        for column, upper, lower in _strokes(columns, rows):
            for row in range(upper, lower + 1):
                dots[row // 4, column // 2] |= DOTS[row % 4, column % 2]
                owner[row // 4, column // 2] = number
    return [
        "".join(_painted(int(bits), int(who), coloured=coloured) for bits, who in zip(*line, strict=True))
        for line in zip(dots, owner, strict=True)
    ]


def chart(title: str, curves: Sequence[Curve], width: int, height: int, *, coloured: bool) -> str:
    """A chart with its title, its axes' ends, and below it the curves' last values."""
    first, last = _range([curve.steps for curve in curves])
    bottom, top = _range([curve.values for curve in curves])
    labels = [f"{top:.4g}", *[""] * (height - 2), f"{bottom:.4g}"]
    margin = max(map(len, labels))
    lines = drawn(curves, width, height, coloured=coloured)
    body = [f"{label:>{margin}} ┤{line}" for label, line in zip(labels, lines, strict=True)]
    ends = f"{first:.0f}{f'step {last:.0f}':>{width - len(f'{first:.0f}')}}"
    return "\n".join(
        [
            f"{'':{margin}}  {title}",
            *body,
            f"{'':{margin}}  {ends}",
            *_legend(curves, margin, coloured=coloured),
            "",
        ]
    )


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError('--png needs matplotlib: install "precept[report]"')


def write_png(path: Path, charts: Mapping[str, Sequence[Curve]]) -> None:
    """All charts in one picture."""
    from matplotlib.figure import Figure

    num_columns = min(COLUMNS, len(charts))
    num_rows = -(-len(charts) // num_columns)
    figure = Figure(figsize=(CHART_SIZE[0] * num_columns, CHART_SIZE[1] * num_rows), layout="constrained")
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten().tolist()
    for axes, (title, curves) in zip(all_axes, charts.items(), strict=False):
        for curve in curves:
            marker = "o" if len(curve.steps) == 1 else None
            axes.plot(curve.steps, curve.values, label=curve.run, linewidth=1.2, marker=marker)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
    for axes in all_axes[len(charts) :]:
        axes.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _strokes(columns: Ints, rows: Ints) -> list[tuple[int, int, int]]:
    """For each column of dots that a curve crosses: (column, its first row, its last row)."""
    across = np.arange(columns[0], columns[-1] + 1)
    known, starts = np.unique(columns, return_index=True)
    upper = np.minimum.reduceat(rows, starts)
    lower = np.maximum.reduceat(rows, starts)
    level = np.rint(np.interp(across, columns, rows)).astype(np.int64)
    # From one column to the next the curve is not to be torn.
    before = np.concatenate([level[:1], level[:-1]])
    highest, lowest = np.minimum(level, before), np.maximum(level, before)
    places = known - columns[0]
    highest[places], lowest[places] = np.minimum(highest[places], upper), np.maximum(lowest[places], lower)
    return list(zip(across.tolist(), highest.tolist(), lowest.tolist(), strict=True))


def _range(arrays: Sequence[Floats]) -> tuple[float, float]:
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    return (low, high) if high > low else (low, low + 1.0)


def _painted(bits: int, number: int, *, coloured: bool) -> str:
    sign = chr(BRAILLE + bits)
    return f"\x1b[{COLOURS[number % len(COLOURS)]}m{sign}\x1b[0m" if coloured and bits else sign


def _legend(curves: Sequence[Curve], margin: int, *, coloured: bool) -> list[str]:
    lines = []
    for number, curve in enumerate(curves):
        sign = _painted(0x12, number, coloured=coloured) if coloured else "-"
        least, most, last = curve.values.min(), curve.values.max(), curve.values[-1]
        lines.append(f"{'':{margin}}  {sign} {curve.run}: last {last:.4g}, least {least:.4g}, most {most:.4g}")
    return lines
