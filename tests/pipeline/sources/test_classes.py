from __future__ import annotations

import math
from pathlib import Path

import pytest

from contract.errors import DataError
from contract.tables import NO_LABEL
from pipeline.sources.classes import Classes


def test_names_are_numbered_in_their_order() -> None:
    classes = Classes.found(["dog", " cat ", "dog", None, "", "7"])
    assert classes.num == 3
    assert [classes.number(name, "here") for name in ("7", "cat", "dog", "", None)] == [0, 1, 2, NO_LABEL, NO_LABEL]


def test_numbers_stay_numbers_however_they_are_written() -> None:
    values = [3, "0", "2.0", 1.0, None, math.nan, -1, "-1.0"]
    classes = Classes.found(values)
    numbers = [classes.number(value, "here") for value in values]
    assert numbers == [3, 0, 2, 1, NO_LABEL, NO_LABEL, NO_LABEL, NO_LABEL]
    assert classes.num == 4


def test_a_file_gives_the_order_and_its_numbers_are_taken_too(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfzebra\r\n\r\nant\r\n")
    classes = Classes.read(tmp_path, "classes.txt")
    assert [classes.number(value, "here") for value in ("zebra", "ant", 1)] == [0, 1, 1]
    assert classes.num == 2
    with pytest.raises(DataError, match=r"^here: 'bee' is none of the 2 classes, such as 'zebra', 'ant'$"):
        classes.number("bee", "here")


@pytest.mark.parametrize("label", [10, "10", -2, "cat", 2.5, 10**12])
def test_label_that_is_no_class_is_named(label: object) -> None:
    with pytest.raises(DataError, match=r"a\.csv: line 3: .* is none of the 10 classes"):
        Classes(num=10).number(label, "a.csv: line 3")


def test_class_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"twice\.txt: 1 of its classes stand there more than once"):
        Classes.read(tmp_path, "twice.txt")
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        Classes.read(tmp_path, "none.txt")
    with pytest.raises(DataError, match="points out of the data root"):
        Classes.read(tmp_path, "../classes.txt")
