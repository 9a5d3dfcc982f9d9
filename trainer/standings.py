"""Standings: what the runs of a sweep have reached, as a table, as CSV and as a plot.

runs.csv        one line per run: recipe, settings, seed, how it ended, and every figure of its best validation
standings.csv   one line per recipe and settings: mean and deviation of the metric over the seeds, the best first
standings.png   the same with every seed as a dot, beside the metric in each epoch; standings.svg
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contract import config
from contract.files import replace_file
from trainer.validate import LOWER

Figures = Mapping[str, float]

# Curves in a plot that an eye can still tell apart.
MOST_CURVES = 8
NOTHING = "-"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run, and `problem`: why it is not finished, "" where it is.

    `validations` are (epoch, figures); `figures` those of the best one, whose student is the checkpoint `best`.
    """

    path: Path
    recipe: str
    settings: Mapping[str, str]
    seed: int
    problem: str
    validations: Sequence[tuple[int, Figures]]
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A recipe with its settings, its runs, and the metric over the seeds that are finished."""

    recipe: str
    settings: Mapping[str, str]
    results: Sequence[Result]
    values: Sequence[float]

    @property
    def label(self) -> str:
        """Recipe and settings in words."""
        return ", ".join([self.recipe, *(f"{short(key)}={value}" for key, value in self.settings.items())])

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where none has the metric."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Of one seed from another, of a sample; NaN for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


def result(path: Path, recipe: str, settings: Mapping[str, str], seed: int, problem: str) -> Result:
    """What the run in `path` has measured so far."""
    validations, best = [], None
    if (path / "metrics.jsonl").exists():
        metric = config.read_tree(path / "config.yaml")["validation"]["metric"]
        sign = -1 if metric.endswith(LOWER) else 1
        for text in (path / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            if "validation" in line:
                validations.append((line["epoch"], line["validation"]))
                if best is None or sign * line["score"] > sign * best["score"]:
                    best = line
    return Result(
        path=path,
        recipe=recipe,
        settings=settings,
        seed=seed,
        problem=problem,
        validations=validations,
        figures=best["validation"] if best else {},
    )


def standings(results: Sequence[Result], metric: str) -> list[Standing]:
    """One for each recipe and settings, the best mean first."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for one in results:
        groups.setdefault((one.recipe, *one.settings.values()), []).append(one)
    found = [
        Standing(
            recipe=group[0].recipe,
            settings=group[0].settings,
            results=group,
            values=[one.figures[metric] for one in group if not one.problem and metric in one.figures],
        )
        for group in groups.values()
    ]
    sign = 1 if metric.endswith(LOWER) else -1
    return sorted(found, key=lambda one: (math.isnan(one.mean), sign * one.mean if one.values else 0.0))


def table(found: Sequence[Standing], metric: str) -> str:
    """For people: one line for each, right-aligned numbers."""
    keys = list(dict.fromkeys(key for one in found for key in one.settings))
    rows = [["recipe", *map(short, keys), metric, "deviation", "seeds", "not finished"]]
    for one in found:
        numbers = [NOTHING if math.isnan(value) else f"{value:.2f}" for value in (one.mean, one.deviation)]
        not_finished = sum(bool(each.problem) for each in one.results)
        settings = [one.settings.get(key, NOTHING) for key in keys]
        rows.append([one.recipe, *settings, *numbers, str(len(one.values)), str(not_finished or NOTHING)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [
            text.ljust(width) if place <= len(keys) else text.rjust(width)
            for place, (text, width) in enumerate(cells)
        ]
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def write(folder: Path, results: Sequence[Result], metric: str) -> list[Path]:
    """Write the files; those that were written."""
    found = standings(results, metric)
    keys = list(dict.fromkeys(key for one in results for key in one.settings))
    figures = list(dict.fromkeys(name for one in results for name in one.figures))
    runs: list[list[Any]] = [["recipe", *keys, "seed", "run", "problem", *figures]]
    for one in results:
        settings = [one.settings.get(key, "") for key in keys]
        values = [one.figures.get(name, "") for name in figures]
        runs.append([one.recipe, *settings, one.seed, one.path.name, one.problem, *values])
    lines: list[list[Any]] = [["recipe", *keys, "metric", "mean", "deviation", "num_seeds", "values"]]
    for each in found:
        settings = [each.settings.get(key, "") for key in keys]
        numbers = ["" if math.isnan(value) else value for value in (each.mean, each.deviation)]
        lines.append(
            [each.recipe, *settings, metric, *numbers, len(each.values), " ".join(f"{v:g}" for v in each.values)]
        )
    written = [folder / "runs.csv", folder / "standings.csv"]
    for path, content in zip(written, (runs, lines), strict=True):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(content)
        replace_file(path, text.getvalue().encode())
    if find_spec("matplotlib") is not None and any(each.values for each in found):
        written += _plot(folder, found, metric)
    return written


def short(key: str) -> str:
    """The last part of a setting's name."""
    return key.rpartition(".")[2]


def _plot(folder: Path, found: Sequence[Standing], metric: str) -> list[Path]:
    from matplotlib.figure import Figure

    shown = [one for one in found if one.values]
    figure = Figure(figsize=(12, max(3.5, 1.2 + 0.45 * len(shown))), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = [f"C{place % 10}" if place < MOST_CURVES else "0.6" for place in range(len(shown))]
    for place, (one, colour) in enumerate(zip(shown, colours, strict=True)):
        left.plot(one.values, [place] * len(one.values), "o", color=colour, alpha=0.4, markersize=5)
        spread = 0.0 if math.isnan(one.deviation) else one.deviation
        left.errorbar(one.mean, place, xerr=spread, fmt="D", color=colour, capsize=4, markersize=6)
        if place < MOST_CURVES:
            epochs, low, mean, high = _curve(one, metric)
            right.plot(epochs, mean, color=colour, label=one.label)
            right.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    left.set_yticks(range(len(shown)), [one.label for one in shown])
    left.invert_yaxis()
    left.set_xlabel(f"{metric} on val: each seed, their mean and its deviation")
    right.set_xlabel("epoch")
    right.set_ylabel(f"{metric} on val: mean, least and most")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    written = [folder / "standings.png", folder / "standings.svg"]
    for path in written:
        figure.savefig(path, dpi=150)
    return written


def _curve(one: Standing, metric: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Epochs, and the least, mean and most of the metric over the seeds that have measured it then."""
    by_epoch: dict[int, list[float]] = {}
    for each in one.results:
        for epoch, figures in each.validations:
            if not each.problem and metric in figures:
                by_epoch.setdefault(epoch, []).append(figures[metric])
    epochs = sorted(by_epoch)
    return (
        epochs,
        *([function(by_epoch[epoch]) for epoch in epochs] for function in (min, statistics.fmean, max)),
    )  # type: ignore[return-value]
