"""What is wrong with items of a dataset: all of it in a file, the counts and the first few for the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from contract.files import replacing

MOST_SHOWN = 3


class Problems:
    """Kinds of problems of each modality, in the order in which they were met."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.counts: Counter[tuple[str, str]] = Counter()
        self.shown: dict[tuple[str, str], list[str]] = {}

    def add(self, modality: str, kind: str, shown: str, **about: Any) -> None:
        """Write one down: `shown` is what the report says of it, `about` what stands in the file."""
        line: Mapping[str, Any] = {"problem": kind, "modality": modality, **about}
        self._file.write(json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n")
        self.counts[modality, kind] += 1
        first = self.shown.setdefault((modality, kind), [])
        if len(first) < MOST_SHOWN:
            first.append(shown)


@contextmanager
def writing(path: Path) -> Iterator[Problems]:
    """A new list in the place of the one of the last run."""
    with replacing(path) as file:
        yield Problems(file)
