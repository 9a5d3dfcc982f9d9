"""metrics.jsonl: one JSON object per logged step, a mean over the steps since the last one, and per validation."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from contract.files import replace_file


class Metrics:
    """Appends to the file of a run that is at `step`; later lines, of steps to be done again, are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _is_kept(line, step)]
            replace_file(path, "".join(f"{line}\n" for line in lines).encode())
        self._file = path.open("a")
        self._sums: defaultdict[str, list[float]] = defaultdict(list)
        self._num_samples = 0
        self._since = time.monotonic()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, parts: Mapping[str, float], num_samples: int) -> None:
        """Count one step."""
        for name, value in parts.items():
            self._sums[name].append(value)
        self._num_samples += num_samples

    def write_step(self, step: int, learning_rate: float) -> dict[str, Any]:
        """Write the means since the last line."""
        line = {
            "step": step,
            "parts": {name: sum(values) / len(values) for name, values in self._sums.items()},
            "learning_rate": learning_rate,
            "samples_per_s": round(self._num_samples / (time.monotonic() - self._since), 1),
        }
        self._write(line)
        self.restart_clock()
        return line

    def write_validation(
        self, step: int, epoch: int, validation: Mapping[str, Any], neighbours: Mapping[str, Any], score: float
    ) -> None:
        """Write a validation's figures by dataset and direction, and those of neighbours where there are any."""
        line = {"step": step, "epoch": epoch, "validation": validation, "score": score}
        self._write(line | ({"neighbours": neighbours} if neighbours else {}))

    def write_teachers(self, step: int, accuracies: Mapping[str, float]) -> None:
        """Write the accuracy of the teachers, restored from the stored targets."""
        self._write({"step": step, "teacher_accuracy": accuracies})

    def restart_clock(self) -> None:
        """Begin a new mean; time spent until now does not count."""
        self._sums.clear()
        self._num_samples, self._since = 0, time.monotonic()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _is_kept(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except ValueError:  # a kill may have cut the last line short
        return False
