"""Where figures go besides metrics.jsonl: each kind a module here, and one line in `Kind` and in `PACKAGES`.

A log is filled from metrics.jsonl when a run begins or is resumed, and from then on line by line: what a kill has
lost is written again, and steps that are done again stand in it once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from contract.errors import MissingExtraError

Kind = Literal["csv", "tensorboard", "wandb", "mlflow"]
# What must be installed: (what is imported, the extra that brings it).
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The run that a log is about: its folder, its recipe as a tree."""

    path: Path
    recipe: Mapping[str, Any]


class Log(Protocol):
    """One place."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step, by their full names."""

    def close(self) -> None:
        """Nothing more will come."""


class Logs:
    """The logs of a run. One that fails is told and left out: the figures are in metrics.jsonl all the same."""

    def __init__(self, kinds: Sequence[Kind] = (), subject: Subject | None = None) -> None:
        self._open: dict[str, Log] = {}
        for kind in kinds:
            assert subject is not None
            self._try(kind, partial(self._add, kind, subject))

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line of metrics.jsonl."""
        step, found = line["step"], figures(line)
        for kind, log in list(self._open.items()):
            self._try(kind, partial(log.write, step, found))

    def close(self) -> None:
        """Nothing more will come."""
        for kind, log in list(self._open.items()):
            self._try(kind, log.close)

    def _add(self, kind: Kind, subject: Subject) -> None:
        self._open[kind] = _open(kind, subject)

    def _try(self, kind: str, action: Callable[[], None]) -> None:
        try:
            action()
        # Servers and their packages fail in ways of their own; none of them is worth a run.
        except Exception as error:
            self._open.pop(kind, None)
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(
                f"warning: log {kind} failed and is left out: {why}; metrics.jsonl has every figure, and a resumed "
                "run fills the log from there",
                file=sys.stderr,
            )


def require(kinds: Iterable[str]) -> None:
    """Raise `MissingExtraError` if a log's package is not installed."""
    for kind in kinds:
        package, extra = PACKAGES.get(kind, ("", ""))
        if package and find_spec(package) is None:
            raise MissingExtraError(
                f'logs: {kind} needs the package {package}: install "precept[{extra}]", or leave {kind} out'
            )


def figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a line of metrics.jsonl by its full name, such as parts/kd.image and validation/rsum."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": inner for name, inner in figures(value).items()}
        elif key != "step":
            found[key] = float(value)
    return found


def _open(kind: Kind, subject: Subject) -> Log:
    match kind:
        case "csv":
            from trainer.logs.csv import Csv

            return Csv(subject)
        case "tensorboard":
            from trainer.logs.tensorboard import TensorBoard

            return TensorBoard(subject)
        case "wandb":
            from trainer.logs.wandb import WeightsAndBiases

            return WeightsAndBiases(subject)
        case "mlflow":
            from trainer.logs.mlflow import MlFlow

            return MlFlow(subject)
