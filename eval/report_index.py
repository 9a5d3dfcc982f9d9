"""The index's own part of a report: tables beside the published figures, none of which it has a share in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract import config
from eval.candidates import Candidates, Indexed
from eval.gallery import Gallery
from eval.indexes.library import library
from eval.sample import Recalls
from eval.tables import Table
from eval.tradeoff import Curve, Tradeoff


def as_text(indexed: Indexed) -> list[str]:
    """Lines for a terminal."""
    return [
        line
        for title, table, note in _tables(indexed)
        for line in (title, "", *table.as_text().splitlines(), *filter(None, [note]), "")
    ]


def as_markdown(indexed: Indexed) -> list[str]:
    """Lines of a Markdown page."""
    return [
        line
        for title, table, note in _tables(indexed)
        for line in ("", f"## {title}", "", *table.as_markdown().splitlines(), *(["", note] if note else []))
    ]


def as_tree(indexed: Indexed) -> dict[str, Any]:
    """The index as dicts, lists and scalars; recalls are shares."""
    tree: dict[str, Any] = {
        **config.tree(indexed.wanted.index),
        "folder": str(indexed.wanted.folder),
        "wanted_recall": indexed.wanted.recall,
        "threads": library().omp_get_max_threads(),
        "galleries": {modality: _gallery_tree(built) for modality, built in indexed.galleries.items()},
        "directions": {name: _candidates_tree(found) for name, found in indexed.directions.items()},
    }
    if indexed.tradeoff is not None:
        tree["tradeoff"] = {
            "direction": indexed.tradeoff.direction,
            "num_queries": indexed.tradeoff.num_queries,
            "curves": [_curve_tree(curve) for curve in indexed.tradeoff.curves],
        }
    return tree


def _tables(indexed: Indexed) -> list[tuple[str, Table, str]]:
    """(title, table, note) each."""
    kind, wanted = indexed.wanted.index.kind, indexed.wanted
    k = max(found.recalls.k for found in indexed.directions.values())
    reused = "read from its files" if all(built.reused for built in indexed.galleries.values()) else "built now"
    title = f"Index {kind} in {wanted.folder}, {reused}, set to find {100 * wanted.recall:g}% of the {k} nearest"
    table = Table(
        columns=("direction", "index", *_recall_names(k), "queries/s", "one by one", "bytes/vector", "build s"),
        rows=tuple(_row(indexed, name) for name in indexed.directions),
        num_names=2,
    )
    small = [
        f"; {name}: {found.recalls.k} in the place of {k}, all that there are"
        for name, found in indexed.directions.items()
        if found.recalls.k < k
    ]
    note = "Held against the exact neighbours; no index has a share in the figures above" + "".join(small) + "."
    found = (title, table, note)
    return [found] if indexed.tradeoff is None else [found, _tradeoff_table(indexed.tradeoff, k)]


def _row(indexed: Indexed, name: str) -> tuple[str, ...]:
    found, built = indexed.directions[name], indexed.galleries[name.split("-to-")[1]]
    return (
        name,
        _index_cell(built, built.settings),
        *(f"{share:.3f}" for share in _shares(found.recalls)),
        f"{found.queries_per_second:,.0f}",
        f"{found.single_queries_per_second:,.0f}",
        f"{built.bytes_per_vector:,.0f}",
        f"{built.about['build_s']:,.2f}",
    )


def _tradeoff_table(tradeoff: Tradeoff, k: int) -> tuple[str, Table, str]:
    rows = [
        (
            _index_cell(curve.gallery, point.settings),
            *(f"{share:.3f}" for share in _shares(point.recalls)),
            f"{point.queries_per_second:,.0f}",
            f"{curve.gallery.bytes_per_vector:,.0f}",
            f"{curve.gallery.about['build_s']:,.2f}",
        )
        for curve in tradeoff.curves
        if curve.gallery is not None
        for point in curve.points
    ]
    columns = ("index", *_recall_names(k), "queries/s", "bytes/vector", "build s")
    left_out = [f"{curve.kind} left out: {curve.skipped}" for curve in tradeoff.curves if curve.skipped]
    title = f"Kinds of index, {tradeoff.direction}, {tradeoff.num_queries:,} queries at once"
    return title, Table(columns=columns, rows=tuple(rows)), "; ".join(left_out)


def _index_cell(built: Gallery, settings: Mapping[str, int]) -> str:
    where = ["GPU"] if built.device == "gpu" else []
    return " ".join([built.description.factory, *(f"{name}={value}" for name, value in settings.items()), *where])


def _gallery_tree(built: Gallery) -> dict[str, Any]:
    return {
        "path": str(built.path),
        "factory": built.description.factory,
        "settings": built.settings,
        "num_vectors": built.description.num_vectors,
        "width": built.description.width,
        "size_bytes": built.size_bytes,
        "bytes_per_vector": round(built.bytes_per_vector, 1),
        "num_training": built.about["num_training"],
        "build_s": built.about["build_s"],
        "reused": built.reused,
        "device": built.device,
    }


def _candidates_tree(found: Candidates) -> dict[str, Any]:
    return {
        **_recalls_tree(found.recalls),
        "num_queries": found.num_queries,
        "queries_per_second": round(found.queries_per_second, 1),
        "single_queries_per_second": round(found.single_queries_per_second, 1),
    }


def _curve_tree(curve: Curve) -> dict[str, Any]:
    if curve.gallery is None:
        return {"kind": curve.kind, "skipped": curve.skipped}
    points = [
        {
            "settings": point.settings,
            **_recalls_tree(point.recalls),
            "queries_per_second": round(point.queries_per_second, 1),
        }
        for point in curve.points
    ]
    return {"kind": curve.kind, **_gallery_tree(curve.gallery), "points": points}


def _recalls_tree(recalls: Recalls) -> dict[str, float]:
    return dict(zip(_recall_names(recalls.k), _shares(recalls), strict=True))


def _recall_names(k: int) -> tuple[str, str, str]:
    """As FAISS's benchmarks call them: the nearest comes first, is among k, and the k nearest are among k."""
    return "1-recall@1", f"1-recall@{k}", f"{k}-recall@{k}"


def _shares(recalls: Recalls) -> tuple[float, float, float]:
    return recalls.first_at_1, recalls.first_at_k, recalls.all_at_k
