"""Classes: labels as numbers, whether a dataset gives numbers or names.

Names are numbered in the order of a `classes` file, one name a line, or sorted: ImageNet-1K's order is that of its
wnids, sorted. Without a file, a class that is added later moves the numbers of those after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from contract.errors import DataError
from contract.tables import NO_LABEL
from pipeline.sources.files import check_inside, relative
from pipeline.sources.rows import lines

# "3.0" is how pandas writes whole numbers into CSV when some are missing.
NUMBER = re.compile(r"-?\d{1,9}(\.0+)?")


class Classes:
    """The numbers of labels.

    `num` is how many classes there are; where labels are numbers and nobody says how many, that have been seen.
    """

    def __init__(self, names: Iterable[str] = (), num: int = 0) -> None:
        """Labels are `names`, in order, or numbers below `num`, or without either any numbers."""
        self._numbers = {name: number for number, name in enumerate(names)}
        self._limit = len(self._numbers) or num
        self.num = self._limit

    @classmethod
    def read(cls, root: Path, file: str) -> Classes:
        """The classes that a text file names, one a line, in their order."""
        path = root / relative(file, "classes")
        if not path.is_file():
            raise DataError(f"{path}: no such file; `classes` is a text file under the data root, a class a line")
        check_inside(root, file)
        names = [name.strip() for _, name in lines(path)]
        if len(set(names)) < len(names):
            raise DataError(f"{path}: {len(names) - len(set(names))} of its classes stand there more than once")
        return cls(names)

    @classmethod
    def found(cls, labels: Iterable[object]) -> Classes:
        """The classes that these are all the labels of: numbers if each is one, else names, sorted."""
        names = {_text(label) for label in labels} - {""}
        return cls() if all(NUMBER.fullmatch(name) for name in names) else cls(sorted(names))

    def number(self, label: object, place: str) -> int:
        """The label's number, `NO_LABEL` for nothing and for -1; `DataError` that names `place` for no class."""
        text = _text(label)
        if text in self._numbers:
            return self._numbers[text]
        number = int(float(text or NO_LABEL)) if NUMBER.fullmatch(text or "0") else None
        if number == NO_LABEL:
            return NO_LABEL
        if number is None or number < 0 or (self._limit and number >= self._limit):
            raise DataError(f"{place}: {label!r} is none of the {self._limit:,} classes{self._examples()}")
        self.num = max(self.num, number + 1)
        return number

    def _examples(self) -> str:
        return f", such as {', '.join(map(repr, list(self._numbers)[:3]))}" if self._numbers else ""


def _text(label: object) -> str:
    """The label as CSV would give it; empty for None and NaN."""
    return "" if label is None or label != label else str(label).strip()
