"""metrics.jsonl: one JSON object per logged step, a mean over the steps since the last one, and per validation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from contract.files import replace_file
from trainer.logs import Logs
from trainer.step import Step


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A line about some steps."""

    parts: dict[str, float]
    learning_rate: float
    samples_per_s: float
    wait_share: float
    memory_bytes: int

    @property
    def shown(self) -> dict[str, str]:
        """For a progress bar."""
        return {
            **{name: f"{value:.3g}" for name, value in self.parts.items()},
            "lr": f"{self.learning_rate:.1e}",
            "samples/s": f"{self.samples_per_s:.0f}",
            "wait": f"{self.wait_share:.0%}",
            "GB": f"{self.memory_bytes / 1e9:.1f}",
        }


class Metrics:
    """Appends to the file of a run that is at `step`; later lines, of steps to be done again, are dropped.

    `sums` are the parts of the steps that no line has yet; they belong to the run's state. `logs` get every line,
    those that the file has already too.
    """

    def __init__(self, path: Path, step: int, sums: dict[str, list[float]], logs: Logs | None = None) -> None:
        self._logs = logs or Logs()
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _is_kept(line, step)]
            replace_file(path, "".join(f"{line}\n" for line in lines).encode())
            for line in lines:
                self._logs.write(json.loads(line))
        self._is_new = not path.exists() or not path.stat().st_size
        self._file = path.open("a")
        self._sums = sums
        self.restart_clock()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._logs.close()
        self._file.close()

    def add(self, step: Step) -> None:
        """Count one step."""
        for name, value in step.parts.items():
            self._sums.setdefault(name, []).append(value)
        self._num_samples += step.num_rows
        self._wait_s += step.wait_s

    def write_step(self, step: int, learning_rate: float, memory_bytes: int) -> Logged:
        """Write the means since the last line."""
        elapsed_s = time.monotonic() - self._since
        line = Logged(
            parts={name: sum(values) / len(values) for name, values in self._sums.items()},
            learning_rate=learning_rate,
            samples_per_s=round(self._num_samples / elapsed_s, 1),
            wait_share=round(self._wait_s / elapsed_s, 4),
            memory_bytes=memory_bytes,
        )
        self._write({"step": step} | vars(line))
        self._sums.clear()
        self.restart_clock()
        return line

    def write_validation(self, step: int, epoch: int, figures: Mapping[str, float], score: float) -> None:
        """Write a validation's figures by name."""
        self._write({"step": step, "epoch": epoch, "validation": figures, "score": score})

    def write_teachers(self, accuracies: Mapping[str, float]) -> None:
        """Write the accuracy of the teachers, restored from the stored targets, before anything else."""
        if accuracies and self._is_new:
            self._write({"step": 0, "teacher_accuracy": accuracies})

    def restart_clock(self) -> None:
        """Time spent until now does not count."""
        self._num_samples, self._wait_s, self._since = 0, 0.0, time.monotonic()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._logs.write(line)


def _is_kept(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except ValueError:  # a kill may have cut the last line short
        return False
