"""Reports of a measurement: JSON, Markdown and the table on the screen; docs/evaluation.md says what is in them.

RUN/reports/retrieval-<dataset>-<split>.json, .md      (-<language> before the suffix unless it is English,
                                      .ranks.npz        -<protocol> where its figures are a mean over folds)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import rank_files, report_files, report_index, report_rerank
from eval.protocols import Protocol
from eval.retrieval import NDCG, Direction, Measured
from eval.tables import Table, in_markdown

UNTRAINED = " *"
NAMES = {"mean_rank": "mean rank", "median_rank": "median rank"}


def write(measured: Measured, folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the Markdown report into `folder`, and every rank beside them; returns where they are."""
    language = measured.split.language
    name = f"retrieval-{measured.student.dataset}-{measured.split.split}"
    if language not in ("", "en"):
        name += f"-{language}"
    if measured.protocol.num_folds > 1:
        name += f"-{measured.protocol.name}"
    paths = report_files.write(folder, name, as_json(measured), as_markdown(measured))
    rank_files.write(paths[0], {way.name: way.ranked for way in measured.directions})
    return paths


def as_json(measured: Measured) -> str:
    """The whole report as JSON; recalls, mAP@R and nDCG are in percent."""
    return json.dumps(as_tree(measured), indent=2) + "\n"


def as_tree(measured: Measured) -> dict[str, Any]:
    """The whole report as dicts, lists and scalars."""
    student, split = measured.student, measured.split
    tree: dict[str, Any] = {
        "protocol": measured.protocol.name,
        "dataset": student.dataset,
        "split": split.split,
        "language": split.language or None,
        "run": str(student.run),
        "recipe": student.recipe,
        **_figures(measured.protocol, measured.directions),
        "quarantined": {modality: items.num_quarantined for modality, items in split.items.items()},
        "training": {
            "compared": list(measured.overlap.stores),
            "missing": list(measured.overlap.missing),
            "copies": dict(measured.overlap.copies),
        },
    }
    if measured.reranked:
        tree["rerank"] = report_rerank.as_tree(measured.reranked, measured.ks)
    if measured.beside:
        tree["beside"] = {other.name: _figures(other, ways) for other, ways in measured.beside.items()}
    if measured.indexed is not None:
        tree["index"] = report_index.as_tree(measured.indexed)
    return tree


def as_text(measured: Measured, written: Sequence[Path]) -> str:
    """The table for a terminal, and where everything is."""
    lines = [_title(measured), ""]
    for caption, table in _tables(measured):
        lines += [*([caption, ""] if caption else []), *table.as_text().splitlines(), ""]
    lines = [*lines[:-1], *_notes(measured), ""]
    if measured.indexed is not None:
        lines += report_index.as_text(measured.indexed)
    lines += [f"report  {path}" for path in written]
    return "\n".join(lines)


def as_markdown(measured: Measured) -> str:
    """The report as a Markdown page."""
    lines = [f"# {in_markdown(_title(measured))}"]
    for caption, table in _tables(measured):
        lines += ["", *([f"## {caption}", ""] if caption else []), *table.as_markdown().splitlines()]
    for note in _notes(measured):
        lines += ["", in_markdown(note)]
    if measured.indexed is not None:
        lines += report_index.as_markdown(measured.indexed)
    return "\n".join(lines) + "\n"


def _figures(protocol: Protocol, directions: Sequence[Direction]) -> dict[str, Any]:
    """The figures of every direction, and what stands beside them by direction."""
    teachers = dict.fromkeys(name for way in directions for name in way.teachers)
    return {
        "folds": protocol.num_folds,
        "directions": {
            way.name: {
                **way.figures,
                "trained": way.trained,
                "intervals": {name: list(bounds) for name, bounds in way.intervals.items()},
                "independent_queries": way.num_clusters,
            }
            for way in directions
        },
        "random": {way.name: way.random for way in directions},
        **{
            "teacher" if len(teachers) == 1 else f"teacher {name}": {
                way.name: way.teachers[name] for way in directions if name in way.teachers
            }
            for name in teachers
        },
    }


def _tables(measured: Measured) -> Iterator[tuple[str, Table]]:
    yield "", _table(measured.ks, measured.directions)
    for other, directions in measured.beside.items():
        yield f"{other.name}: the mean of {other.num_folds} folds", _table(measured.ks, directions)
    if measured.reranked:
        own = {way.name: way.figures for way in measured.directions}
        yield "by the scores of a cross-encoder", report_rerank.table(measured.reranked, own, measured.ks)


def _table(ks: Sequence[int], directions: Sequence[Direction]) -> Table:
    """A row for each direction, and one for each teacher below it."""
    figures = [*(f"R@{k}" for k in ks), "mean_rank", "median_rank", "mAP@R"]
    if any(NDCG in way.figures for way in directions):
        figures.append(NDCG)
    last = f"R@{ks[-1]}"
    rows = []
    for way in directions:
        cells = [_cell(way.figures, name, way.intervals) for name in figures]
        counts = [f"{way.figures[key]:,}" for key in ("num_queries", "num_gallery")]
        name = way.name + ("" if way.trained else UNTRAINED)
        rows.append((name, *cells, *counts, f"{way.random[last]:.1f}"))
        for teacher, found in way.teachers.items():
            rows.append((f"  teacher {teacher}", *(_cell(found, name, {}) for name in figures), "", "", ""))
    columns = ("direction", *(NAMES.get(name, name) for name in figures), "queries", "gallery", f"random {last}")
    return Table(columns=columns, rows=tuple(rows))


def _cell(figures: Mapping[str, float], name: str, intervals: Mapping[str, tuple[float, float]]) -> str:
    """A figure and half of its interval, as in 24.0 ± 1.9."""
    if name not in figures:
        return ""
    if name not in intervals:
        return f"{figures[name]:,.1f}"
    low, high = intervals[name]
    return f"{figures[name]:,.1f} ± {(high - low) / 2:,.1f}"


def _title(measured: Measured) -> str:
    student, split, protocol = measured.student, measured.split, measured.protocol.name
    of = "" if student.dataset in protocol or protocol == split.manifest.protocol else f" ({student.dataset})"
    language = f", captions: {split.language}" if split.language else ""
    return f"Retrieval on {protocol}{of} {split.split}{language}, run {student.run} ({student.recipe})"


def _notes(measured: Measured) -> list[str]:
    notes = []
    if measured.protocol.num_folds > 1:
        notes.append(f"the mean of {measured.protocol.num_folds} folds, each with a gallery of its own")
    if any(way.intervals for way in measured.directions):
        notes.append(
            "± half of the 95% interval, by a bootstrap over queries; those that share an item are drawn together"
        )
    if not all(way.trained for way in measured.directions):
        notes.append("* no pair of these two modalities was trained on")
    if measured.reranked:
        notes.append(report_rerank.EXPLANATION)
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
    notes += [
        f"{modality} items whose file is one of training under another name, byte for byte: {number:,}"
        for modality, number in measured.overlap.copies.items()
    ]
    notes += [
        f"not compared with the training items of {path}, which is gone or damaged"
        for path in measured.overlap.missing
    ]
    return notes
