from __future__ import annotations

import csv
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from contract.errors import MissingExtraError
from contract.store import TargetStore
from trainer import logs, runs
from trainer.fit import fit
from trainer.logs import Logs, Subject, figures
from trainer.metrics import Metrics
from trainer.recipes import Recipe
from trainer.step import Step

Make = Callable[..., Recipe]

RECIPE = {"name": "tiny", "optimizer": {"learning_rate": 0.1}}


def measured(path: Path, first: int, last: int, kinds: tuple[Any, ...]) -> None:
    """Steps of a session that begins from a checkpoint at `first`."""
    with Metrics(path / "metrics.jsonl", first, {}, Logs(kinds, Subject(path=path, recipe=RECIPE))) as metrics:
        for step in range(first + 1, last + 1):
            metrics.add(Step(parts={"kd.image": 1.0 / step}, num_rows=4, wait_s=0.0))
            metrics.write_step(step, 0.1, 1000)
        metrics.write_validation(last, 1, {"tiny/text-to-image/R@1": 10.0 * last, "rsum": 2.0}, 2.0)


def test_every_number_of_a_line_has_a_name() -> None:
    line = {"step": 3, "parts": {"kd.image": 1.5}, "validation": {"tiny/R@1": 2}, "score": 2}
    assert figures(line) == {"parts/kd.image": 1.5, "validation/tiny/R@1": 2.0, "score": 2.0}


def test_csv_has_each_step_once_after_a_resume(tmp_path: Path) -> None:
    measured(tmp_path, 0, 3, ("csv",))
    measured(tmp_path, 2, 4, ("csv",))  # step 3 is done again
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    losses = [(row["step"], float(row["value"])) for row in rows if row["name"] == "parts/kd.image"]
    assert losses == [("1", 1.0), ("2", 0.5), ("3", 1 / 3), ("4", 0.25)]
    found = {row["name"] for row in rows}
    assert {"score", "validation/tiny/text-to-image/R@1", "learning_rate", "samples_per_s", "epoch"} <= found


def test_log_that_is_asked_for_later_has_the_earlier_steps_too(tmp_path: Path) -> None:
    measured(tmp_path, 0, 3, ())
    measured(tmp_path, 3, 4, ("csv",))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if row["name"] == "learning_rate"] == ["1", "2", "3", "4"]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    measured(tmp_path, 0, 3, ("tensorboard",))
    measured(tmp_path, 2, 4, ("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("parts/kd.image")]
    assert losses == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert events.Scalars("validation/tiny/text-to-image/R@1")[-1].value == 40.0


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_each_step_once_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracked").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    measured(tmp_path, 0, 3, ("mlflow",))
    measured(tmp_path, 2, 4, ("mlflow",))
    client = MlflowClient()
    known = json.loads((tmp_path / "mlflow.json").read_text())["run_id"]
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(known, "parts/kd.image")]
    assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    run = client.get_run(known)
    assert run.data.metrics["validation/tiny/text-to-image/R_at_1"] == 40.0
    assert run.data.params["optimizer.learning_rate"] == "0.1"
    assert run.info.status == "FINISHED"


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_a_run_on_this_machine_when_it_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    measured(tmp_path, 0, 3, ("wandb",))
    measured(tmp_path, 2, 4, ("wandb",))
    kept = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2
    assert len({file.name for file in kept}) == 1  # one run, in two sessions, for `wandb sync`


@pytest.mark.parametrize("kind", ["wandb", "mlflow", "tensorboard"])
def test_package_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(logs.PACKAGES, kind, ("a_package_that_nobody_has", kind))
    message = rf"logs: {kind} needs the package a_package_that_nobody_has: install \"precept\[{kind}\]\", or leave"
    with pytest.raises(MissingExtraError, match=message):
        logs.require([kind])
    logs.require(["csv"])


def test_missing_package_is_told_before_a_folder_is_made(
    recipe: Make, store: TargetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(logs.PACKAGES, "wandb", ("a_package_that_nobody_has", "wandb"))
    with pytest.raises(MissingExtraError):
        runs.begin(recipe({"logs": ["wandb"]}), [store.path], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_log_that_fails_is_left_out_and_the_run_goes_on(
    recipe: Make, store: TargetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.begin(recipe({"epochs": 1, "logs": ["csv"]}), [store.path], tmp_path / "run")
    (run.path / "metrics.csv").mkdir(parents=True)
    fit(run)
    assert run.record["finished"]
    said = capsys.readouterr().err
    assert said.count("warning: log csv failed and is left out: IsADirectoryError") == 1
    assert len(run.metrics.read_text().splitlines()) == 5
