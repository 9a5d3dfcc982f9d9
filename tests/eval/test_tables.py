from __future__ import annotations

import csv
import io

import pytest

from eval.tables import Table

NASTY = Table(
    columns=("run", "R@1"),
    rows=(("a|b*c_<script>", "1.0"), ('50% of "x", & {y} ~\\^', "12.5 ± 0.1")),
)


def test_text_is_aligned_with_figures_at_the_right():
    table = Table(columns=("run", "R@1"), rows=(("a", "1.0"), ("longer", "12.5")))
    assert table.as_text() == "run      R@1\na        1.0\nlonger  12.5\n"


def test_no_word_in_a_markdown_table_is_a_mark_or_a_tag():
    head, rule, first, _ = NASTY.as_markdown().splitlines()
    assert (head, rule) == ("| run | R@1 |", "| --- | ---: |")
    assert first == r"| a\|b\*c\_\<script\> | 1.0 |"


def test_csv_reads_back_what_it_was_made_of():
    assert list(csv.reader(io.StringIO(NASTY.as_csv()))) == [["run", "R@1"], *map(list, NASTY.rows)]


@pytest.mark.parametrize(
    ("word", "written"),
    [("50%", r"50\%"), ("a_b", r"a\_b"), ("{&#$}", r"\{\&\#\$\}"), ("\\", r"\textbackslash{}"), ("±", r"$\pm$")],
)
def test_no_word_in_a_latex_table_is_a_command(word, written):
    lines = Table(columns=("run", "R@1"), rows=((word, "1"),)).as_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[4] == rf"{written} & 1 \\"
    assert [lines[1], lines[3], *lines[5:]] == [r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"]
