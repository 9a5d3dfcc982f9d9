"""MLflow: a run of the experiment `precept`, or of the one that MLFLOW_EXPERIMENT_NAME names.

Where it goes is said by MLFLOW_TRACKING_URI; RUN/mlflow.json keeps the run's id.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from contract.files import replace_file
from trainer.logs import Subject

# What MLflow takes in one request.
MOST_PARAMETERS, MOST_METRICS = 100, 1000
MOST_CHARACTERS = 6000


class MlFlow:
    """A resumed run goes on in the same place; steps that are there already are not sent again."""

    def __init__(self, subject: Subject) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        known = subject.path / "mlflow.json"
        if not known.exists():
            run = self._client.create_run(self._experiment(), run_name=subject.path.name)
            self._id = run.info.run_id
            self._write_parameters(subject.recipe)
            replace_file(known, json.dumps({"run_id": self._id}).encode())
        self._id = json.loads(known.read_text())["run_id"]
        self._client.update_run(self._id, status="RUNNING")
        self._last: dict[str, int] = {}

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """All of a step's figures at once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [
            Metric(name, value, now, step)
            for name, value in ((_name(name), value) for name, value in figures.items())
            if step > self._last_step(name)
        ]
        for start in range(0, len(found), MOST_METRICS):
            self._client.log_batch(self._id, metrics=found[start : start + MOST_METRICS])

    def close(self) -> None:
        """Mark it ended."""
        self._client.set_terminated(self._id)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "precept")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _write_parameters(self, recipe: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        found = [Param(_name(name), str(value)[:MOST_CHARACTERS]) for name, value in _leaves(recipe).items()]
        for start in range(0, len(found), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=found[start : start + MOST_PARAMETERS])

    def _last_step(self, name: str) -> int:
        """The last step before this session that has the figure, -1 without one."""
        if name not in self._last:
            self._last[name] = max((m.step for m in self._client.get_metric_history(self._id, name)), default=-1)
        return self._last[name]


def _name(name: str) -> str:
    """MLflow's names have letters, digits, and few signs: R@1 is R_at_1."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
