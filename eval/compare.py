"""Runs beside one another: the figures of their reports, and how sure the differences to the first one are.

A difference's 95% interval is a paired bootstrap: clusters of queries are drawn with replacement, within each fold,
the same ones for every run. Runs of a group differ in their seed alone; a group's figure is its runs' mean, of the
reports as of every draw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from contract import config, fingerprint
from contract.errors import RunError
from contract.ranking import bootstrap, interval
from contract.schema import difference
from eval import rank_files
from eval.rank_files import Ranked

Rows = npt.NDArray[np.int64]
Double = npt.NDArray[np.float64]
Values = TypeVar("Values", Rows, Double)

# What two reports must agree on for their figures to mean the same.
SAME = ("protocol", "dataset", "split", "language")
MEDIAN = "median_rank"
# Figures of a report are made in float64 from the same ranks, perhaps in another order.
ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """A run's report: `tree` is its JSON, `ranks` those of every query by direction."""

    run: Path
    file: Path
    tree: Mapping[str, Any]
    ranks: Mapping[str, Ranked]

    def figures(self, direction: str) -> dict[str, float]:
        """The figures of a direction; counts are none."""
        return {name: value for name, value in self.tree["directions"][direction].items() if type(value) is float}


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Runs that are reported as one: `name` and its reports."""

    name: str
    reports: tuple[Report, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """To the first group's figure; `low` and `high` bound 95% of the draws, None where no query has a value."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether no difference at all is outside the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure of a group in one direction: mean over its runs, their standard deviation, the difference."""

    mean: float
    deviation: float | None
    difference: Difference | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A group in one direction; `trained` says whether it was trained on pairs of these modalities."""

    direction: str
    group: str
    trained: bool
    cells: Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """The comparison: its rows, direction by direction, the random baseline of each, and what must be told."""

    about: Mapping[str, Any]
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    random: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of all figures, in the order of the reports."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.cells))


def compare(
    runs: Sequence[Path], *, report: str | None, grouped: bool, seed: int, say: Callable[[str], None]
) -> Compared:
    """Compare finished runs by the retrieval report of that name, by default the one that all of them have."""
    if len(runs) < 2:
        raise RunError("give two runs or more to compare")
    if len({run.resolve() for run in runs}) < len(runs):
        raise RunError("a run is given twice; it can't differ from itself")
    name = report or _common_report(runs)
    if report is None:
        say(f"report: {name}")
    reports = [_read(run, name) for run in runs]
    for other in reports[1:]:
        _require_comparable(reports[0], other)
    groups = _groups(reports) if grouped else tuple(Group(name=str(one.run), reports=(one,)) for one in reports)
    directions = [way for way in reports[0].tree["directions"] if all(way in one.ranks for one in reports)]
    if not directions:
        raise RunError(f"{reports[0].file} and the others have no direction in common")
    rows = [row for way in _with_progress(directions) for row in _rows(groups, way, seed)]
    return Compared(
        about={key: reports[0].tree[key] for key in SAME},
        groups=groups,
        rows=tuple(rows),
        random={way: _floats(reports[0].tree["random"].get(way, {})) for way in directions},
        notes=tuple(_notes(reports, directions)),
    )


def _common_report(runs: Sequence[Path]) -> str:
    known = {}
    for run in runs:
        if not (run / "run.json").is_file():
            raise RunError(f"{run}: no run there (it has no run.json); `trainer run` makes one")
        known[run] = {file.stem for file in (run / "reports").glob("retrieval-*.json")}
        if not known[run]:
            raise RunError(f"{run} has no retrieval report; `eval retrieval --run {run}` writes one")
    common = sorted(set.intersection(*known.values()))
    if not common:
        have = "; ".join(f"{run}: {', '.join(sorted(names))}" for run, names in known.items())
        raise RunError(f"no report that all runs have; {have}; `eval retrieval --run RUN` writes what is missing")
    if len(common) > 1:
        raise RunError(f"the runs have several reports in common: {', '.join(common)}; choose one with --report")
    return common[0]


def _read(run: Path, name: str) -> Report:
    file = run / "reports" / f"{name.removesuffix('.json')}.json"
    try:
        tree = json.loads(file.read_text())
        figures = {way: dict(found) for way, found in tree["directions"].items()}
        random = {way: dict(found) for way, found in tree.get("random", {}).items()}
        about = {key: tree[key] for key in SAME} | {"recipe": str(tree["recipe"])}
    except FileNotFoundError as error:
        raise RunError(f"{file}: no such report; `eval retrieval --run {run}` writes one") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: not a retrieval report: {error!r}; `eval retrieval` writes it again") from error
    tree |= about | {"directions": figures, "random": random}
    read = Report(run=run, file=file, tree=tree, ranks=rank_files.read(file))
    _require_own_ranks(read)
    return read


def _require_own_ranks(report: Report) -> None:
    """Raise `RunError` unless the ranks are those that the report's figures were made of."""
    for way, figures in report.tree["directions"].items():
        ranked = report.ranks.get(way)
        for name in ("R@1", "mean_rank"):
            found = None if ranked is None else _figure(name, ranked)
            said = figures.get(name, found)
            if found is None or not isinstance(said, int | float) or not abs(found - said) <= ROUNDING:
                raise RunError(
                    f"{rank_files.path(report.file)} is not of {report.file.name}: {way} {name} of its ranks is "
                    f"{found}, the report says {figures.get(name)}; `eval retrieval` writes both again"
                )


def _require_comparable(first: Report, other: Report) -> None:
    about, wanted = ({key: one.tree[key] for key in SAME} for one in (other, first))
    wrong = difference(about, wanted)
    if wrong:
        raise RunError(f"{other.file} can't be compared with {first.file}: {wrong}")
    for way, ranked in other.ranks.items():
        known = first.ranks.get(way)
        if known is None:
            continue
        gallery = [one.tree["directions"][way].get("num_gallery") for one in (other, first)]
        if gallery[0] != gallery[1]:
            raise RunError(
                f"{other.file} can't be compared with {first.file}: {way} is among {gallery[0]} items, not "
                f"{gallery[1]}"
            )
        unlike = np.setxor1d(ranked.ids, known.ids)
        if len(unlike):
            raise RunError(
                f"{other.file} can't be compared with {first.file}: {len(unlike):,} queries of {way} are ranked in "
                f"one of them alone, such as {str(unlike[0])!r}"
            )
        if (_aligned(ranked.folds, ranked.ids, known.ids) != known.folds).any():
            raise RunError(f"{other.file} can't be compared with {first.file}: {way} has other folds")


def _groups(reports: Sequence[Report]) -> tuple[Group, ...]:
    """Reports of one recipe whose settings differ in the seed alone; the settings of a second group are named."""
    members: dict[tuple[str, str], list[Report]] = {}
    settings: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        tree = {key: value for key, value in config.read_tree(report.run / "config.yaml").items() if key != "seed"}
        key = (report.tree["recipe"], fingerprint.of_tree(tree))
        members.setdefault(key, []).append(report)
        settings.setdefault(key, tree)
    groups: list[Group] = []
    first: dict[str, dict[str, Any]] = {}
    for (recipe, mark), found in members.items():
        plain = first.setdefault(recipe, settings[recipe, mark])
        other = difference(settings[recipe, mark], plain)
        name = f"{recipe} ({other})" if other else recipe
        if any(group.name == name for group in groups):  # its settings differ in more than the first
            name += f" as {found[0].run}"
        groups.append(Group(name=name, reports=tuple(found)))
    return tuple(groups)


def _rows(groups: Sequence[Group], way: str, seed: int) -> Iterator[Row]:
    figures = [[report.figures(way) for report in group.reports] for group in groups]
    shared = _shared([report for group in groups for report in group.reports], way)
    # A report may make a figure otherwise than from the values of single queries: these can't tell how sure it is.
    known = [name for name in shared if all(_is_made(name, one, way) for group in groups for one in group.reports)]
    first = groups[0].reports[0]
    if not _can_be_drawn(first.ranks[way]):
        known = []
    draws = [_draws(group, known, way, first, seed) for group in groups] if len(groups) > 1 else []
    for number, group in enumerate(groups):
        cells = {}
        for name in shared:
            values = np.array([one[name] for one in figures[number]])
            change = Difference(value=float(values.mean() - np.mean([one[name] for one in figures[0]])))
            if number and name in known:
                low, high = interval(draws[number][name] - draws[0][name])
                change = replace(change, low=low, high=high)
            cells[name] = Cell(
                mean=float(values.mean()),
                deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
                difference=change if number else None,
            )
        trained = all(report.tree["directions"][way].get("trained", True) for report in group.reports)
        yield Row(direction=way, group=group.name, trained=trained, cells=cells)


def _shared(reports: Sequence[Report], way: str) -> list[str]:
    """The figures that every report has."""
    return [name for name in reports[0].figures(way) if all(name in report.figures(way) for report in reports)]


def _draws(group: Group, names: Sequence[str], way: str, first: Report, seed: int) -> dict[str, Double]:
    """Each figure of a group in every draw, float64 [draws]; clusters and folds are those of the report `first`."""
    base = first.ranks[way]
    found = dict.fromkeys(names, np.zeros(1))
    for report in group.reports:
        ranked = report.ranks[way]
        known = {name: values for name in names if (values := _values(name, ranked)) is not None}
        columns = {name: _aligned(values, ranked.ids, base.ids) for name, values in known.items()}
        for number, fold in enumerate(folds := _folds(base)):
            drawn = bootstrap(
                {name: values[fold] for name, values in columns.items() if name != MEDIAN},
                base.clusters[fold],
                medians={name: values[fold] for name, values in columns.items() if name == MEDIAN},
                seed=seed + number,
            )
            weight = 1 / (len(group.reports) * len(folds))
            found = {name: found[name] + weight * drawn[name] for name in names}
    return found


def _can_be_drawn(ranked: Ranked) -> bool:
    """Whether every fold has two clusters or more: every draw of a single one is the same."""
    return all(len(np.unique(ranked.clusters[fold])) > 1 for fold in _folds(ranked))


def _is_made(name: str, report: Report, way: str) -> bool:
    """Whether the values of single queries give the figure that the report has."""
    made = _figure(name, report.ranks[way])
    return made is not None and abs(made - report.figures(way)[name]) <= ROUNDING


def _figure(name: str, ranked: Ranked) -> float | None:
    """A figure from the values of single queries, the mean over folds; None if they have none of it."""
    values = _values(name, ranked)
    middle = np.median if name == MEDIAN else np.mean
    return None if values is None else float(np.mean([middle(values[fold]) for fold in _folds(ranked)]))


def _values(name: str, ranked: Ranked) -> Double | None:
    """What the figure is the mean of, or the median: float64 [q]."""
    if name.startswith("R@") and name[2:].isdecimal():
        return (100.0 * (ranked.ranks <= int(name[2:]))).astype(np.float64)
    return ranked.ranks.astype(np.float64) if name in ("mean_rank", MEDIAN) else ranked.values.get(name)


def _folds(ranked: Ranked) -> list[Rows]:
    """The positions of each fold's queries."""
    return [np.flatnonzero(ranked.folds == fold) for fold in np.unique(ranked.folds)]


def _aligned(values: Values, ids: npt.NDArray[np.str_], wanted: npt.NDArray[np.str_]) -> Values:
    """The values [q], which are those of `ids`, in the order of the same ids in `wanted`."""
    order = np.argsort(ids)
    return values[order[np.searchsorted(ids[order], wanted)]]


def _floats(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if type(value) is float}


def _notes(reports: Sequence[Report], directions: Sequence[str]) -> Iterator[str]:
    for report in reports:
        others = [way for way in report.tree["directions"] if way not in directions]
        if others:
            yield f"left out, since not every run has it: {', '.join(others)} of {report.run}"
        found = {name for way in directions for name in set(report.figures(way)) - set(_shared(reports, way))}
        if found:
            yield f"left out, since not every run has it: {', '.join(sorted(found))} of {report.run}"


def _with_progress(directions: Sequence[str]) -> Iterator[str]:
    with tqdm(directions, desc="bootstrap", unit="direction", leave=False) as progress:
        for way in progress:
            progress.set_postfix_str(way)
            yield way
