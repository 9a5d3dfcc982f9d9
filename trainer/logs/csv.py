"""RUN/metrics.csv: a line `step,name,value` for every figure."""

from __future__ import annotations

import csv
from collections.abc import Mapping

from trainer.logs import Subject


class Csv:
    """Begun anew each time: metrics.jsonl fills it."""

    def __init__(self, subject: Subject) -> None:
        self._file = (subject.path / "metrics.csv").open("w", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(("step", "name", "value"))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """A line each, and out with them: someone may be looking."""
        self._rows.writerows((step, name, repr(value)) for name, value in figures.items())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
