"""The report's JSON as tables: whatever figures it has, those that are known in their order, others after them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.page.outcomes import Curve
from eval.retrieval import Direction

RANKS = ("mean_rank", "median_rank")
COUNTS = (
    "num_queries",
    "num_gallery",
    "ties",
    "queries_without_positive",
    "independent_queries",
    "graded_queries",
)
NAMES = {
    "mean_rank": "mean rank",
    "median_rank": "median rank",
    "num_queries": "queries",
    "num_gallery": "gallery",
    "queries_without_positive": "no positive",
    "independent_queries": "independent",
    "graded_queries": "graded",
    "random": "random order",
}
# What the page says in other places.
SAID = {
    "protocol",
    "dataset",
    "split",
    "language",
    "run",
    "recipe",
    "folds",
    "directions",
    "quarantined",
    "training",
    "beside",
}
DASH = "\N{EN DASH}"
CURVE_KS = (1, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure as it is shown, and its interval where it has one."""

    text: str
    interval: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: what it is of, a remark such as "untrained", its cells; `is_baseline` lines stand back."""

    name: str
    remark: str = ""
    cells: tuple[Cell, ...]
    is_baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """`columns` has the name of the row header first."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def figures(tree: Mapping[str, Any], name: str = "") -> Table:
    """Every direction, and under it each baseline that the report has: a random order, the teacher and others.

    `name` is that of a protocol beside the report's own.
    """
    directions: Mapping[str, Mapping[str, Any]] = tree["directions"]
    baselines = [key for key, value in tree.items() if key not in SAID and is_by_direction(value, directions)]
    columns = _columns(list(directions.values()))
    rows: list[Row] = []
    for direction, found in directions.items():
        remark = "" if found.get("trained", True) else "untrained"
        rows.append(Row(name=direction, remark=remark, cells=_cells(found, columns)))
        for key in baselines:
            if direction in tree[key]:
                shown = {name: value for name, value in tree[key][direction].items() if name not in COUNTS}
                name_of = f"scores of {shown['k']}" if key == "rerank" else named(key)
                rows.append(Row(name=name_of, cells=_cells(shown, columns), is_baseline=True))
    return Table(
        caption=f"{f'{name}: figures' if name else 'Figures'} in percent, ranks from 1",
        columns=("direction", *(named(column) for column in columns)),
        rows=tuple(rows),
    )


def others(tree: Mapping[str, Any]) -> tuple[Table, ...]:
    """Every other part of the report, a table each."""
    directions = tree["directions"]
    rest = {key: value for key, value in tree.items() if key not in SAID and not is_by_direction(value, directions)}
    if "index" in rest:
        rest["index"] = {key: value for key, value in rest["index"].items() if key != "tradeoff"}
    scalars = {key: rest.pop(key) for key in list(rest) if not isinstance(rest[key], Mapping | list)}
    tables = [_listed("this report", scalars)] if scalars else []
    for key, value in rest.items():
        tables += _tables(named(key), value)
    return tuple(tables)


def recalls(ways: Sequence[Direction], curves: Sequence[Curve]) -> Table:
    """The figures behind the recall curves of these directions."""
    ks = [k for k in CURVE_KS if any(k <= len(found.recalls) for found in curves)]
    return Table(
        caption="Recall at K in percent",
        columns=("direction", *(f"R@{k}" for k in ks)),
        rows=tuple(
            Row(
                name=way.name,
                remark="" if way.trained else "untrained",
                cells=tuple(
                    Cell(text=f"{found.recalls[k - 1]:.1f}" if k <= len(found.recalls) else DASH) for k in ks
                ),
            )
            for way, found in zip(ways, curves, strict=True)
        ),
    )


def named(key: str) -> str:
    """A key of the JSON in words."""
    return NAMES.get(key, key.replace("_", " "))


def number(value: Any) -> str:
    """As it is read: counts whole, others with one decimal, small ones with four digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1.05 or value == 0 else f"{value:.4g}"
    return DASH if value is None else str(value)


def settled(value: Any) -> str:
    """A number, or settings in one cell, as in nprobe=4."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={number(one)}" for name, one in value.items())
    return ", ".join(map(number, value)) if isinstance(value, list) else number(value)


def is_by_direction(value: Any, directions: Mapping[str, Any]) -> bool:
    """Whether a part of the report holds figures for directions, as the random baseline does."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and set(value) <= set(directions)
        and all(isinstance(found, Mapping) for found in value.values())
    )


def interval(found: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """The interval of a figure: any part of the figures that has two numbers under the figure's name."""
    for part in found.values():
        bounds = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(bounds, list | tuple) and len(bounds) == 2:
            return float(bounds[0]), float(bounds[1])
    return None


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Recalls, by their K, and the mean and median rank, of those figures that are there."""
    there = set(names)
    recalls = sorted((name for name in there if re.fullmatch(r"R@\d+", name)), key=lambda name: int(name[2:]))
    return (*recalls, *(name for name in RANKS if name in there))


def _columns(found: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The names of all figures, known ones first and counts last, with the decimals that all of a column have."""
    names = dict.fromkeys(name for one in found for name, value in one.items() if _is_number(value))
    # Most splits have no ties, and a positive for each query.
    first, last = known(names), tuple(name for name in COUNTS if any(one.get(name) for one in found))
    names = {name: None for name in names if name in last or name not in COUNTS}
    ordered = (*first, *(name for name in names if name not in first + last), *last)
    # Percentages and ranks have one; shares, which are at most 1, have three.
    return {
        name: 1 if name in first or max(abs(one.get(name) or 0) for one in found) > 1 else 3 for name in ordered
    }


def _cells(found: Mapping[str, Any], columns: Mapping[str, int]) -> tuple[Cell, ...]:
    return tuple(_cell(found, column, num_decimals) for column, num_decimals in columns.items())


def _cell(found: Mapping[str, Any], column: str, num_decimals: int) -> Cell:
    def written(value: float) -> str:
        return f"{value:,.{num_decimals}f}"

    value, bounds = found.get(column), interval(found, column)
    text = written(value) if isinstance(value, float) else "" if value is None else number(value)
    return Cell(text=text, interval="" if bounds is None else f"{written(bounds[0])}{DASH}{written(bounds[1])}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tables(caption: str, value: Any) -> list[Table]:
    """A part of the report: its scalars in one table, parts that fit in a line each in another, then the rest."""
    if isinstance(value, list):
        value = {str(place): one for place, one in enumerate(value, start=1)}
    if not isinstance(value, Mapping):
        return [_listed(caption, {caption: value})]
    scalars = {key: one for key, one in value.items() if not isinstance(one, Mapping | list)}
    lines = {key: one for key, one in value.items() if _is_line(one)}
    tables = [_listed(caption, scalars)] if scalars else []
    if lines:
        columns = tuple(dict.fromkeys(name for one in lines.values() for name in one))
        rows = tuple(
            Row(name=named(key), cells=tuple(Cell(text=settled(one.get(name))) for name in columns))
            for key, one in lines.items()
        )
        tables.append(Table(caption=caption, columns=("", *map(named, columns)), rows=rows))
    for key, one in value.items():
        if key not in scalars and key not in lines:
            tables += _tables(f"{caption}: {named(key)}", one)
    return tables


def _is_line(value: Any) -> bool:
    """Whether a part fits in a line: scalars, and settings that are scalars themselves."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and not any(isinstance(one, Mapping | list) and not _is_flat(one) for one in value.values())
        and not all(isinstance(one, Mapping) for one in value.values())
    )


def _is_flat(value: Mapping[str, Any] | list[Any]) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value
    return not any(isinstance(one, Mapping | list) for one in inner)


def _listed(caption: str, scalars: Mapping[str, Any]) -> Table:
    return Table(
        caption=caption,
        columns=("", "value"),
        rows=tuple(Row(name=named(key), cells=(Cell(text=number(value)),)) for key, value in scalars.items()),
    )
