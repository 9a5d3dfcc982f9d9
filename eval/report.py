"""Reports of a measurement: JSON, Markdown and the table on the screen.

RUN/reports/retrieval-<dataset>-<split>.json, .md      (-<language> before the suffix unless it is English)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract import config
from contract.files import replace_file
from eval.retrieval import Direction, Indexed, Measured

COLUMNS = ("direction", "R@1", "R@5", "R@10", "mean rank", "median rank", "queries", "gallery", "random R@10")
UNTRAINED = " *"


def write(measured: Measured, folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the Markdown report into `folder`; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    language = measured.split.language
    name = f"retrieval-{measured.student.dataset}-{measured.split.split}"
    if language not in ("", "en"):
        name += f"-{language}"
    paths = folder / f"{name}.json", folder / f"{name}.md"
    for path, text in zip(paths, (as_json(measured), as_markdown(measured)), strict=True):
        replace_file(path, text.encode())
    return paths


def as_json(measured: Measured) -> str:
    """The whole report as JSON; recalls are in percent."""
    return json.dumps(as_tree(measured), indent=2) + "\n"


def as_tree(measured: Measured) -> dict[str, Any]:
    """The whole report as dicts, lists and scalars."""
    student, split = measured.student, measured.split
    tree: dict[str, Any] = {
        "protocol": split.manifest.protocol,
        "dataset": student.dataset,
        "split": split.split,
        "language": split.language or None,
        "run": str(student.run),
        "recipe": student.recipe,
        "directions": {way.name: way.figures | {"trained": way.trained} for way in measured.directions},
        "random": {way.name: way.random for way in measured.directions},
        "quarantined": {modality: items.num_quarantined for modality, items in split.items.items()},
    }
    if measured.indexed is not None:
        tree["index"] = _index_tree(measured.indexed, measured.directions)
    return tree


def as_text(measured: Measured, written: Sequence[Path]) -> str:
    """The table for a terminal, and where everything is."""
    rows = _rows(measured)
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (COLUMNS, *rows)
    ]
    lines = [_title(measured), "", *lines, *_notes(measured), ""]
    if measured.indexed is not None:
        lines.append(f"index   {_index_line(measured)}")
    lines += [f"report  {path}" for path in written]
    return "\n".join(lines)


def as_markdown(measured: Measured) -> str:
    """The report as a Markdown page."""
    table = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *_rows(measured)]
    lines = [f"# {_title(measured)}", "", *(f"| {' | '.join(row)} |".replace(" * ", r" \* ") for row in table)]
    for note in _notes(measured):
        lines += ["", note.replace("*", r"\*")]
    if measured.indexed is not None:
        lines += ["", f"Index: {_index_line(measured)}"]
    return "\n".join(lines) + "\n"


def _rows(measured: Measured) -> list[list[str]]:
    return [
        [
            way.name + ("" if way.trained else UNTRAINED),
            *(f"{way.figures[key]:,.1f}" for key in ("R@1", "R@5", "R@10", "mean_rank", "median_rank")),
            *(f"{way.figures[key]:,}" for key in ("num_queries", "num_gallery")),
            f"{way.random['R@10']:.1f}",
        ]
        for way in measured.directions
    ]


def _title(measured: Measured) -> str:
    student, split = measured.student, measured.split
    language = f", captions: {split.language}" if split.language else ""
    return f"Retrieval on {split.manifest.protocol} {split.split}{language}, run {student.run} ({student.recipe})"


def _notes(measured: Measured) -> list[str]:
    notes = []
    if not all(way.trained for way in measured.directions):
        notes.append("* no pair of these two modalities was trained on")
    notes += [
        f"{modality} items that could not be decoded, left out: {items.num_quarantined:,}"
        for modality, items in measured.split.items.items()
        if items.num_quarantined
    ]
    for way in measured.directions:
        left_out, ties = way.figures["queries_without_positive"], way.figures["ties"]
        if left_out:
            notes.append(f"{way.name}: queries without a positive, left out: {left_out:,}")
        if ties:
            notes.append(f"{way.name}: queries in which others tie with the best positive, ordered by id: {ties:,}")
    return notes


def _index_line(measured: Measured) -> str:
    indexed = measured.indexed
    assert indexed is not None
    galleries = indexed.galleries.values()
    candidates = [way.candidates for way in measured.directions if way.candidates is not None]
    reused = "read from its files" if all(built.reused for built in galleries) else "built now"
    return (
        f"{indexed.folder}: {indexed.index.kind}, {sum(built.description.num_vectors for built in galleries):,} "
        f"vectors, {sum(built.size_bytes for built in galleries) / 1e6:.2f} MB, {reused}; recall of the exact "
        f"{max(found.k for found in candidates)} best {min(found.recall for found in candidates):.4f}, "
        f"{min(found.queries_per_second for found in candidates):,.0f} queries/s in the slowest direction"
    )


def _index_tree(indexed: Indexed, directions: Sequence[Direction]) -> dict[str, Any]:
    return {
        **config.tree(indexed.index),
        "folder": str(indexed.folder),
        "galleries": {
            modality: {
                "file": built.path.name,
                "num_vectors": built.description.num_vectors,
                "width": built.description.width,
                "size_bytes": built.size_bytes,
                "reused": built.reused,
            }
            for modality, built in indexed.galleries.items()
        },
        "directions": {
            way.name: {
                f"recall@{found.k}": found.recall,
                "num_recall_queries": found.num_recall_queries,
                "queries_per_second": round(found.queries_per_second, 1),
            }
            for way in directions
            if (found := way.candidates) is not None
        },
    }
