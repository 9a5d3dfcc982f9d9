"""A run on several workers of Ray Train."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.errors import ConfigError, RunError
from contract.store import TargetStore, writing
from trainer import checkpoint, runs
from trainer.cluster import joined
from trainer.distribute import fit_on_workers
from trainer.fit import fit
from trainer.recipes import Recipe
from trainer.runs import Run
from trainer.streams import Streams

Make = Callable[..., Recipe]
# Ray needs some seconds for each of its processes.
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

WORKER = re.compile(r"worker 1 of 2: process (\d+)")
STILL: dict[str, Any] = {
    "student.dropout": 0.0,
    "student.adapters": {
        "image": {"kind": "mlp", "dropout": 0.0},
        "text": {"kind": "transformer", "num_heads": 2, "dropout": 0.0},
        "audio": {"kind": "mlp", "dropout": 0.0},
    },
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One of this machine, which `fit_on_workers` finds and leaves running."""
    with joined(None, least_cpus=2):
        yield


@contextmanager
def killed_once(run: Run) -> Iterator[None]:
    """Meanwhile, kill worker 1 of the run as soon as there is a checkpoint."""
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.005):
            if run.checkpoints.all():
                os.kill(int(WORKER.findall(log(run))[0]), signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def log(run: Run) -> str:
    return (run.path / "log.txt").read_text() if (run.path / "log.txt").exists() else ""


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_two_workers_measure_what_one_process_does(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    short = recipe({**STILL, "epochs": 2})
    alone = runs.begin(short, [store.path], tmp_path / "alone")
    fit(alone)
    shared = runs.begin(short, [store.path], tmp_path / "shared")
    shared.create()
    fit_on_workers(shared, 2)
    assert [line["step"] for line in lines(shared)] == [line["step"] for line in lines(alone)]
    for one, other in zip(lines(alone), lines(shared), strict=True):
        assert other.get("parts", {}) == pytest.approx(one.get("parts", {}), rel=1e-3)
        assert other.get("score", 0.0) == pytest.approx(one.get("score", 0.0), abs=7)  # one of 16 images
    assert {path.name for path in shared.path.iterdir()} == {path.name for path in alone.path.iterdir()} | {
        "log.txt"
    }
    assert json.loads((shared.path / "run.json").read_text())["finished"]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_run_whose_worker_was_killed_ends_as_one_whose_was_not(
    recipe: Make, store: TargetStore, tmp_path: Path
) -> None:
    long = recipe({"epochs": 40, "checkpoints": {"every_steps": 5}, "validation": {"every_epochs": 40}})
    whole, killed = (runs.begin(long, [store.path], tmp_path / name) for name in ("whole", "killed"))
    for run in (whole, killed):
        run.create()
    fit_on_workers(whole, 2)
    with killed_once(killed):
        fit_on_workers(killed, 2)
    assert len(WORKER.findall(log(killed))) == 2
    expected, state = checkpoint.load(whole.checkpoints.all()[0])
    found, found_state = checkpoint.load(killed.checkpoints.all()[0])
    assert (found_state["step"], found_state["best"]) == (state["step"], state["best"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_users_mistake_in_a_worker_is_one_line_and_is_not_made_again(
    recipe: Make, store: TargetStore, tmp_path: Path
) -> None:
    run = runs.begin(recipe({"optimizer.learning_rate": 1e30}), [store.path], tmp_path / "run")
    run.create()
    with pytest.raises(RunError, match=r"^step \d+: .* is (nan|inf)") as raised:
        fit_on_workers(run, 2)
    assert "\n" not in str(raised.value)
    assert log(run).count("worker 0 of 2: process") <= 2


def test_batch_that_workers_cant_share_is_refused(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(recipe(), [store.path], tmp_path / "run")
    with pytest.raises(ConfigError, match="batch_size 16 can't be shared evenly by 3 workers"):
        fit_on_workers(run, 3)
    assert not run.path.exists()


def test_more_workers_than_pairs_are_refused(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(recipe({"batch_size": 128}), [store.path], tmp_path / "run")
    with pytest.raises(ConfigError, match=r"image-text of .* has 47 pairs for 64 workers"):
        fit_on_workers(run, 64)


def test_run_is_held_while_its_workers_train(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(recipe(), [store.path], tmp_path / "run")
    with writing(run.path), pytest.raises(Exception, match=str(run.path)):
        fit_on_workers(run, 2)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_shares_are_the_batch_in_order(recipe: Make, store: TargetStore, num_ranks: int) -> None:
    whole = runs.begin(recipe(), [store.path], Path("unused")).streams
    shares: list[Streams] = [whole.shared(rank, num_ranks) for rank in range(num_ranks)]
    assert {share.steps_per_epoch for share in shares} == {whole.steps_per_epoch}
    for step in range(2 * whole.steps_per_epoch):
        expected = whole.draw(step)[1].shown.rows
        parts = [share.draw(step)[1].shown.rows for share in shares]
        for modality, rows in expected.items():
            assert [row for part in parts for row in part[modality]] == list(rows)
