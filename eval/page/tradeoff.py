"""Kinds of index held against one another: recall, speed and size, as the report's JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.page.tables import Cell, Row, Table, number, settled


@dataclass(frozen=True, kw_only=True)
class Line:
    """An index at different settings: the share of the nearest that it finds, and queries a second."""

    kind: str
    recalls: tuple[float, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """What `--index-compare` found in one direction; `skipped` says why a kind was left out."""

    direction: str
    recall: str
    lines: tuple[Line, ...]
    table: Table
    skipped: tuple[str, ...]


def tradeoff(tree: Mapping[str, Any]) -> Tradeoff | None:
    """The comparison of a report's JSON; None where none was asked for."""
    found = tree.get("index", {}).get("tradeoff")
    if found is None:
        return None
    built = [curve for curve in found["curves"] if "points" in curve]
    names = [name for name in built[0]["points"][0] if "recall@" in name]
    return Tradeoff(
        direction=found["direction"],
        recall=names[-1],
        lines=tuple(
            Line(
                kind=curve["kind"],
                recalls=tuple(point[names[-1]] for point in curve["points"]),
                rates=tuple(point["queries_per_second"] for point in curve["points"]),
            )
            for curve in built
        ),
        table=Table(
            caption=f"Kinds of index, {found['direction']}, {found['num_queries']:,} queries at once",
            columns=("index", *names, "queries/s", "bytes/vector", "build s"),
            rows=tuple(_row(curve, point, names) for curve in built for point in curve["points"]),
        ),
        skipped=tuple(f"{curve['kind']}: {curve['skipped']}" for curve in found["curves"] if "points" not in curve),
    )


def _row(curve: Mapping[str, Any], point: Mapping[str, Any], names: list[str]) -> Row:
    cells = (
        *(f"{point[name]:.3f}" for name in names),
        f"{point['queries_per_second']:,.0f}",
        f"{curve['bytes_per_vector']:,.0f}",
        number(curve["build_s"]),
    )
    name = " ".join(filter(None, [curve["factory"], settled(point["settings"])]))
    return Row(name=name, cells=tuple(Cell(text=cell) for cell in cells))
