"""A table of words as a terminal, a Markdown page, a spreadsheet and LaTeX want it."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

# In LaTeX these are commands.
LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "≠": r"$\neq$",
}


def in_markdown(words: str) -> str:
    """Words as Markdown that shows them: none of them becomes a tag or a mark."""
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", words)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows of words; the first `num_names` columns are names, the others figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1

    def as_text(self) -> str:
        """Aligned with spaces: names at the left, figures at the right."""
        lines = (self.columns, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "".join("  ".join(self._aligned(line, widths)).rstrip() + "\n" for line in lines)

    def as_markdown(self) -> str:
        """A table of GitHub's Markdown; no word in it becomes a tag or a mark."""
        rule = ["---" if place < self.num_names else "---:" for place in range(len(self.columns))]
        lines = [self.columns, *self.rows]
        cells = [[in_markdown(cell) for cell in line] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in (cells[0], rule, *cells[1:]))

    def as_csv(self) -> str:
        """Comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def as_latex(self) -> str:
        """A tabular with the rules of the package booktabs."""
        alignment = "l" * self.num_names + "r" * (len(self.columns) - self.num_names)
        head, *body = (
            " & ".join("".join(LATEX.get(character, character) for character in cell) for cell in line) + r" \\"
            for line in (self.columns, *self.rows)
        )
        lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}"]) + "\n"

    def _aligned(self, line: tuple[str, ...], widths: list[int]) -> list[str]:
        return [
            cell.ljust(width) if place < self.num_names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
