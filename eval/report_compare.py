"""A comparison as tables: for a terminal, in Markdown, as CSV (a line a figure), in LaTeX."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from eval.compare import Cell, Compared, Difference
from eval.tables import Table, in_markdown

Words = Callable[[str], str]

UNTRAINED = " *"
SIGN = " ≠"
RANDOM = "random"


def as_text(found: Compared) -> str:
    """For a terminal."""
    return _page(found, Table.as_text, heading="{}\n".format, line="{}\n".format)


def as_markdown(found: Compared) -> str:
    """A Markdown page."""
    return _page(
        found,
        Table.as_markdown,
        heading=lambda words: f"# {in_markdown(words)}\n",
        line=lambda words: f"{in_markdown(words)}\n",
        between="\n",
    )


def as_latex(found: Compared) -> str:
    """Tabulars with the rules of booktabs; the notes are comments."""
    return _page(found, Table.as_latex, heading="% {}\n".format, line="% {}\n".format)


def as_csv(found: Compared) -> str:
    """One line for each direction, run and figure, with all digits."""
    rows = []
    for row in found.rows:
        num_runs = next(len(group.reports) for group in found.groups if group.name == row.group)
        for name, cell in row.cells.items():
            change = cell.difference or Difference(value=0.0)
            numbers = (
                cell.mean,
                cell.deviation,
                change.value if cell.difference else None,
                change.low,
                change.high,
            )
            excludes = "" if change.low is None else str(change.excludes_zero).lower()
            written = ("" if number is None else repr(number) for number in numbers)
            trained = str(row.trained).lower()
            rows.append((row.direction, row.group, trained, name, str(num_runs), *written, excludes))
    for way, figures in found.random.items():
        rows += [(way, RANDOM, "", name, "", repr(value), *[""] * 5) for name, value in figures.items()]
    columns = (
        *("direction", "run", "trained", "figure", "runs", "mean", "deviation"),
        *("difference", "low", "high", "excludes_zero"),
    )
    return Table(columns=columns, rows=tuple(rows)).as_csv()


FORMATS: dict[str, Callable[[Compared], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}


def _page(
    found: Compared, of_table: Callable[[Table], str], *, heading: Words, line: Words, between: str = ""
) -> str:
    parts = [heading(_title(found)), of_table(_figures(found))]
    if len(found.groups) > 1:
        parts.append(of_table(_differences(found)))
    return "\n".join([*parts, between.join(map(line, _notes(found)))])


def _figures(found: Compared) -> Table:
    rows = []
    for way, of_direction in groupby(found.rows, key=lambda row: row.direction):
        for row in of_direction:
            cells = (_cell(row.cells.get(name)) for name in found.figures)
            rows.append((way + ("" if row.trained else UNTRAINED), row.group, *cells))
        if random := found.random[way]:
            chance = (f"{random[name]:,.1f}" if name in random else "" for name in found.figures)
            rows.append((way, RANDOM, *chance))
    return Table(columns=("direction", "run", *map(_words, found.figures)), rows=tuple(rows), num_names=2)


def _differences(found: Compared) -> Table:
    first = found.groups[0].name
    rows = [
        (
            row.direction,
            row.group,
            *(_change(cell.difference) if (cell := row.cells.get(name)) else "" for name in found.figures),
        )
        for row in found.rows
        if row.group != first
    ]
    columns = ("direction", f"run, minus {first}", *map(_words, found.figures))
    return Table(columns=columns, rows=tuple(rows), num_names=2)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.mean:,.1f}" + ("" if cell.deviation is None else f" ± {cell.deviation:,.1f}")


def _change(change: Difference | None) -> str:
    if change is None:
        return ""
    if change.low is None or change.high is None:
        return f"{change.value:+,.1f}"
    return f"{change.value:+,.1f} [{change.low:+,.1f}, {change.high:+,.1f}]" + SIGN * change.excludes_zero


def _words(figure: str) -> str:
    return figure.replace("_", " ")


def _title(found: Compared) -> str:
    about = found.about
    language = f", captions: {about['language']}" if about["language"] else ""
    return f"{about['protocol']} {about['split']}{language}: {len(found.groups)} compared"


def _notes(found: Compared) -> list[str]:
    notes = []
    if not all(row.trained for row in found.rows):
        notes.append("*: no pair of these two modalities was trained on")
    if len(found.groups) > 1:
        notes.append(
            "[low, high]: 95% of a paired bootstrap over queries, those that share a positive together; ≠: 0 is "
            "outside; recalls in percent, a higher one is better; a lower rank is better"
        )
    for group in found.groups:
        if len(group.reports) > 1:
            runs = ", ".join(str(report.run) for report in group.reports)
            notes.append(f"{group.name}: mean ± standard deviation of {len(group.reports)} runs: {runs}")
    if any(len(group.reports) > 1 for group in found.groups) and len(found.groups) > 1:
        notes.append("an interval tells of other queries with these runs, not of other seeds")
    return [*notes, *found.notes]
