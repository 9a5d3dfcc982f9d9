"""Reports of a nearest-neighbour classification: JSON, Markdown and the table on the screen.

RUN/reports/neighbours-<dataset>-<modality>-<bank>-<queries>.json, .md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval import labelled, report_files
from eval.neighbours import ClassShare, Measured, Share
from eval.tables import Table, in_markdown

COLUMNS = ("embedding", "memory", "queries", "k", "any of k", "chance", "vote of k", "chance")
EXPLANATION = (
    "any of k: one of the k nearest has the query's label; vote of k: most of them have it, the nearest label "
    "where several have most. Percent; exact cosines, ties in the order of ids."
)


def write(found: Sequence[Measured], folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the Markdown report into `folder`; returns where they are."""
    first = found[0]
    name = f"neighbours-{first.source.dataset}-{first.source.modality}-{first.bank.split}-{first.queries.split}"
    return report_files.write(folder, name, as_json(found), as_markdown(found))


def as_json(found: Sequence[Measured]) -> str:
    """The whole report as JSON; accuracies and chances are in percent."""
    return json.dumps(as_tree(found), indent=2) + "\n"


def as_tree(found: Sequence[Measured]) -> dict[str, Any]:
    """The whole report as dicts, lists and scalars."""
    return {
        "protocol": "zero-shot nearest neighbour",
        "measured": [
            {
                "embedding": one.source.name,
                "run": None if one.source.run is None else str(one.source.run),
                "store": str(one.source.store.path),
                "field": one.source.field,
                "dataset": one.source.dataset,
                "bank": one.bank.split,
                "queries": one.queries.split,
                "num_bank": len(one.bank.ids),
                "num_queries": len(one.queries.ids),
                "unlabelled": {items.split: items.num_unlabelled for items in (one.bank, one.queries)},
                "quarantined": {items.split: items.num_quarantined for items in (one.bank, one.queries)},
                "k": _by_k(one.shares),
                "classes": {
                    str(each.label): {
                        "num_queries": each.num_queries,
                        "num_bank": each.num_bank,
                        "k": _by_k(each.shares),
                    }
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
    """The report as a Markdown page, with a table of each measurement's classes."""
    parts = [
        f"# {in_markdown(_title(found))}\n",
        table(found).as_markdown(),
        *(f"{in_markdown(note)}\n" for note in (EXPLANATION, *_notes(found))),
    ]
    for one in found:
        parts += [
            f"## {in_markdown(one.source.name)}: memory {one.bank.split}, queries {one.queries.split}\n",
            _class_table(one.classes).as_markdown(),
        ]
    return "\n".join(parts)


def table(found: Sequence[Measured]) -> Table:
    """A row for each measurement and k."""
    rows = [
        (
            one.source.name,
            f"{one.bank.split} ({len(one.bank.ids):,})",
            f"{one.queries.split} ({len(one.queries.ids):,})",
            str(share.k),
            *(f"{value:.1f}" for value in (share.any, share.chance_any, share.vote, share.chance_vote)),
        )
        for one in found
        for share in one.shares
    ]
    return Table(columns=COLUMNS, rows=tuple(rows), num_names=3)


def _class_table(classes: Sequence[ClassShare]) -> Table:
    ks = [share.k for share in classes[0].shares]
    figures = [f"{what} of {k}" for k in ks for what in ("any", "vote")]
    rows = [
        (
            str(each.label),
            f"{each.num_bank:,}",
            f"{each.num_queries:,}",
            *(f"{value:.1f}" for share in each.shares for value in (share.any, share.vote)),
        )
        for each in classes
    ]
    return Table(columns=("class", "memory", "queries", *figures), rows=tuple(rows))


def _by_k(shares: Sequence[Share]) -> dict[str, dict[str, float]]:
    return {str(share.k): {name: value for name, value in asdict(share).items() if name != "k"} for share in shares}


def _title(found: Sequence[Measured]) -> str:
    source = found[0].source
    return f"Zero-shot nearest neighbours on {source.dataset}, {source.modality} items"


def _notes(found: Sequence[Measured]) -> list[str]:
    notes = [
        f"{one.source.name}: {note}" for one in found for items in (one.bank,) for note in labelled.notes(items)
    ]  # each split is the bank once
    for one in found:
        unknown = [each for each in one.classes if not each.num_bank]
        if unknown:
            notes.append(
                f"{one.source.name}: {len(unknown)} classes of split {one.queries.split} are not in memory, so "
                f"{sum(each.num_queries for each in unknown):,} queries can't be right"
            )
    return notes
