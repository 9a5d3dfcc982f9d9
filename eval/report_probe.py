"""Reports of a linear probe: JSON, Markdown and the table on the screen.

RUN/reports/probe-<dataset>-<modality>-<train>-<test>.json, .md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval import labelled, report_files
from eval.probe import GRID, MAX_ITERATIONS, ClassAccuracy, Measured
from eval.tables import Table, in_markdown

COLUMNS = ("embedding", "train", "test", "C", "accuracy", "mean of classes", "chance")
EXPLANATION = (
    "Multinomial logistic regression on standardised, frozen embeddings. Percent; chance names the training items' "
    "most frequent class."
)


def write(found: Sequence[Measured], folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the Markdown report into `folder`; returns where they are."""
    first = found[0]
    name = f"probe-{first.source.dataset}-{first.source.modality}-{first.train.split}-{first.test.split}"
    return report_files.write(folder, name, as_json(found), as_markdown(found))


def as_json(found: Sequence[Measured]) -> str:
    """The whole report as JSON; accuracies are in percent."""
    return json.dumps(as_tree(found), indent=2) + "\n"


def as_tree(found: Sequence[Measured]) -> dict[str, Any]:
    """The whole report as dicts, lists and scalars."""
    return {
        "protocol": "linear probe",
        "measured": [
            {
                "embedding": one.source.name,
                "run": None if one.source.run is None else str(one.source.run),
                "store": str(one.source.store.path),
                "field": one.source.field,
                "dataset": one.source.dataset,
                "train": one.train.split,
                "test": one.test.split,
                "num_train": len(one.train.ids),
                "num_test": len(one.test.ids),
                "unlabelled": {items.split: items.num_unlabelled for items in (one.train, one.test)},
                "quarantined": {items.split: items.num_quarantined for items in (one.train, one.test)},
                "C": one.c,
                "chosen_on": one.chosen_on,
                "grid": {f"{c:g}": accuracy for c, accuracy in one.grid.items()},
                "seed": one.seed,
                "converged": one.has_converged,
                "accuracy": one.accuracy,
                "mean_of_classes": one.balanced,
                "chance": one.chance,
                "classes": {
                    str(each.label): {name: value for name, value in asdict(each).items() if name != "label"}
                    for each in one.classes
                },
            }
            for one in found
        ],
    }


def as_text(found: Sequence[Measured], written: Sequence[Path]) -> str:
    """The table for a terminal, and where everything is."""
    lines = [_title(found), "", table(found).as_text(), EXPLANATION, *_notes(found), ""]
    lines += [f"report  {path}" for path in written]
    return "\n".join(lines).rstrip("\n")


def as_markdown(found: Sequence[Measured]) -> str:
    """The report as a Markdown page, with a table of each probe's classes."""
    parts = [
        f"# {in_markdown(_title(found))}\n",
        table(found).as_markdown(),
        *(f"{in_markdown(note)}\n" for note in (EXPLANATION, *_notes(found))),
    ]
    for one in found:
        parts += [f"## {in_markdown(one.source.name)}\n", _class_table(one.classes).as_markdown()]
    return "\n".join(parts)


def table(found: Sequence[Measured]) -> Table:
    """A row for each probe."""
    rows = [
        (
            one.source.name,
            f"{one.train.split} ({len(one.train.ids):,})",
            f"{one.test.split} ({len(one.test.ids):,})",
            f"{one.c:g}",
            *(f"{value:.1f}" for value in (one.accuracy, one.balanced, one.chance)),
        )
        for one in found
    ]
    return Table(columns=COLUMNS, rows=tuple(rows), num_names=3)


def _class_table(classes: Sequence[ClassAccuracy]) -> Table:
    rows = [
        (str(each.label), f"{each.num_train:,}", f"{each.num_test:,}", f"{each.accuracy:.1f}") for each in classes
    ]
    return Table(columns=("class", "train", "test", "accuracy"), rows=tuple(rows))


def _title(found: Sequence[Measured]) -> str:
    source = found[0].source
    return f"Linear probe on {source.dataset}, {source.modality} items"


def _notes(found: Sequence[Measured]) -> list[str]:
    notes = []
    for one in found:
        own = [f"C chosen on {one.chosen_on}, seed {one.seed}"]
        if one.c in (GRID[0], GRID[-1]):
            own.append(f"C = {one.c:g} is at an end of the grid: a better one may lie beyond it")
        if not one.has_converged:
            own.append(f"the fit had not converged after {MAX_ITERATIONS:,} iterations")
        unknown = [each for each in one.classes if not each.num_train]
        if unknown:
            own.append(
                f"{len(unknown)} classes of split {one.test.split} are not in {one.train.split}, so "
                f"{sum(each.num_test for each in unknown):,} items can't be right"
            )
        own += [note for items in (one.train, one.test) for note in labelled.notes(items)]
        notes += [f"{one.source.name}: {note}" for note in own]
    return notes
