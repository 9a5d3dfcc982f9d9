"""`trainer show`: the curves of one run, or of several over one another, from their metrics.jsonl."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contract import config
from contract.errors import ConfigError, RunError
from trainer import charts
from trainer.charts import Curve
from trainer.logs import figures

# What is shown without --figure: what these begin with.
SHOWN = ("score", "parts/", "learning_rate", "samples_per_s")
# In characters, of a terminal of 80 columns.
WIDTH, HEIGHT, MARGIN = 64, 8, 14
WIDEST = 120


def show(paths: Sequence[Path], wanted: Sequence[str] = (), png: Path | None = None) -> Iterator[str]:
    """What to print: a line for each run, then its charts; with `png` they are drawn into that file as well.

    `wanted` are parts of the names of the figures to be shown; `ConfigError` if one is of none.
    """
    if png is not None:
        charts.require_matplotlib()
    measured = {str(path): _figures(path) for path in paths}
    yield from (_headline(path) for path in paths)
    yield ""
    found = _charts(measured, wanted)
    width = min(WIDEST, max(20, shutil.get_terminal_size((WIDTH + MARGIN, 24)).columns - MARGIN))
    for title, curves in found.items():
        yield charts.chart(title, curves, width, HEIGHT, coloured=sys.stdout.isatty())
    if png is not None:
        charts.write_png(png, found)
        yield f"{png}: {len(found)} charts"


def _charts(measured: Mapping[str, Mapping[str, Curve]], wanted: Sequence[str]) -> dict[str, list[Curve]]:
    """The figures to be shown, with the curve of each run that has them."""
    names = list(dict.fromkeys(name for figures in measured.values() for name in figures))
    for part in wanted:
        if not any(part in name for name in names):
            raise ConfigError(f"--figure {part}: no figure of these runs; there are: {', '.join(names)}")
    if wanted:
        shown = [name for name in names if any(part in name for part in wanted)]
    else:
        shown = [name for start in SHOWN for name in names if name.startswith(start)]
    return {name: [figures[name] for figures in measured.values() if name in figures] for name in shown}


def _figures(path: Path) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for line in _lines(path):
        for name, value in figures(line).items():
            if math.isfinite(value):
                points.setdefault(name, []).append((line["step"], value))
    if not points:
        raise RunError(f"{path / 'metrics.jsonl'}: nothing measured yet")
    return {
        name: Curve(run=str(path), steps=np.array(of, float)[:, 0], values=np.array(of, float)[:, 1])
        for name, of in points.items()
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    file = path / "metrics.jsonl"
    try:
        texts = file.read_text().splitlines()
    except FileNotFoundError as error:
        raise RunError(f"{path}: no run there, or it has measured nothing yet (no metrics.jsonl)") from error
    for number, text in enumerate(texts):
        try:
            yield json.loads(text)
        except ValueError as error:
            if number < len(texts) - 1:  # the last one may be being written
                raise RunError(f"{file}: line {number + 1} is damaged: {error}") from error


def _headline(path: Path) -> str:
    """The run, its recipe, how far it is, its metric at its best, and its teachers."""
    record = json.loads((path / "run.json").read_text())
    lines = list(_lines(path))
    parts = [f"recipe {record['recipe']}", f"step {max(line['step'] for line in lines)}"]
    parts.append("finished" if record["finished"] else "not finished")
    scores = [(line["score"], line["epoch"]) for line in lines if "score" in line]
    if scores:
        metric = config.read_tree(path / "config.yaml").get("validation", {}).get("metric", "metric")
        score, epoch = scores[-1]
        parts.append(f"{metric} {score:.4g} in epoch {epoch}")
    for line in lines:
        parts += [f"teacher {name} {value:.1%}" for name, value in line.get("teacher_accuracy", {}).items()]
    return f"{path}: {', '.join(parts)}"
