"""Many runs from one store through Ray Tune, and what is told of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConfigError, RunError
from contract.store import TargetStore
from trainer import runs, standings, sweep
from trainer.fit import fit
from trainer.standings import Result
from trainer.sweep import Sweep, parse_grid, parse_seeds

RecipeFile = Callable[..., Path]
pytestmark = pytest.mark.timeout(300)


def asked(recipe: Path, store: TargetStore, **changes: Any) -> Sweep:
    default = Sweep(
        recipes=[str(recipe)], seeds=[0, 1], grid={}, changes=["epochs=1"], stores=[str(store.path)], metric=None
    )
    return replace(default, **changes)


def result(recipe: str, seed: int, value: float | None, problem: str = "", **settings: str) -> Result:
    figures = {} if value is None else {"rsum": value, "mean_rank": 100 - value}
    return Result(
        path=Path(f"{recipe}-{seed}"),
        recipe=recipe,
        settings=settings,
        seed=seed,
        problem=problem,
        validations=[(1, figures)],
        figures=figures,
    )


def test_grid_is_divided_at_commas_outside_of_brackets() -> None:
    assert parse_grid(["a.b=1e-3,3e-4", "c=[1, 2],{x: 1, y: 2}", "d='p,q',r"]) == {
        "a.b": ["1e-3", "3e-4"],
        "c": ["[1, 2]", "{x: 1, y: 2}"],
        "d": ["'p,q'", "r"],
    }


@pytest.mark.parametrize("texts", [["a.b"], ["=1"], ["a="], ["a=1,"], ["a=1", "a=2"]])
def test_grid_without_key_or_values_or_with_one_key_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--grid"):
        parse_grid(texts)


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("3,0-2,1") == [3, 0, 1, 2]
    with pytest.raises(ConfigError, match="--seed 1,x"):
        parse_seeds("1,x")
    with pytest.raises(ConfigError, match="--seed 3-1: 3-1 has no numbers"):
        parse_seeds("3-1")


@pytest.mark.parametrize(
    ("grid", "changes", "message"),
    [
        ({"seed": ["1", "2"]}, [], "seeds are given by --seed"),
        ({}, ["seed=3"], "seeds are given by --seed"),
        ({"epochs": ["1", "2"]}, ["epochs=3"], "epochs is given by --grid and by --set"),
    ],
)
def test_setting_that_another_would_override_is_refused(
    recipe_file: RecipeFile, store: TargetStore, grid: dict[str, list[str]], changes: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = asked(recipe_file(), store, grid=grid, changes=changes).trials


def test_trials_are_all_combinations(recipe_file: RecipeFile, store: TargetStore) -> None:
    grid = {"optimizer.learning_rate": ["1e-3", "3e-4"], "student.width": ["32"]}
    trials = asked(recipe_file(), store, grid=grid).trials
    assert [trial.name for trial in trials] == [
        "tiny,learning_rate=1e-3,width=32,seed=0",
        "tiny,learning_rate=3e-4,width=32,seed=0",
        "tiny,learning_rate=1e-3,width=32,seed=1",
        "tiny,learning_rate=3e-4,width=32,seed=1",
    ]
    loaded = trials[-1].load()
    assert (loaded.optimizer.learning_rate, loaded.student.width, loaded.seed, loaded.epochs) == (3e-4, 32, 1, 1)


def test_settings_of_one_name_are_told_apart(recipe_file: RecipeFile, store: TargetStore) -> None:
    grid = {"objectives.kd.weight": ["1.0"], "objectives.rank.weight": ["2.0"]}
    (trial,) = asked(recipe_file(), store, grid=grid, seeds=[0]).trials
    assert trial.name == "tiny,objectives.kd.weight=1.0,objectives.rank.weight=2.0,seed=0"


def test_two_runs_of_one_name_are_refused(recipe_file: RecipeFile, store: TargetStore) -> None:
    recipe = str(recipe_file())
    with pytest.raises(ConfigError, match="two runs of the sweep"):
        _ = asked(Path(recipe), store, recipes=[recipe, recipe]).trials


def test_sweep_goes_on_where_it_was(
    recipe_file: RecipeFile, store: TargetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, said = tmp_path / "sweep", []
    # A run that is finished, one that fails at every try, and two that are still to be done.
    wanted = asked(recipe_file(), store, grid={"optimizer.learning_rate": ["3e-3", "1e30"]})
    done = wanted.trials[0]
    fit(done.open(path / done.name, wanted.stores))
    before = (path / done.name / "best.safetensors").stat().st_mtime_ns
    table = sweep.run_sweep(path, wanted, say=said.append, concurrent=2)
    assert (path / done.name / "best.safetensors").stat().st_mtime_ns == before
    assert said[0] == f"sweep: {path}: 4 runs, 1 of them finished"
    assert sum("step " in line and " is nan" in line for line in said) >= 2
    assert [line.split() for line in table.splitlines()] == [
        ["recipe", "learning_rate", "rsum", "deviation", "seeds", "not", "finished"],
        ["tiny", "3e-3", *table.splitlines()[1].split()[2:4], "2", "-"],
        ["tiny", "1e30", "-", "-", "0", "2"],
    ]
    rows = list(csv.DictReader((path / "runs.csv").read_text().splitlines()))
    assert [(row["run"], bool(row["problem"])) for row in rows] == [
        (trial.name, trial.settings["optimizer.learning_rate"] == "1e30") for trial in wanted.trials
    ]
    assert float(rows[0]["rsum"]) == runs_best(path / done.name)
    assert {file.name for file in path.glob("standings.*")} >= {"standings.csv"}
    assert not (path / "ray").exists()
    assert sweep.num_unfinished(path, wanted) == 2
    # The same folder with the good setting alone: there is nothing left to do.
    good = replace(wanted, grid={"optimizer.learning_rate": ["3e-3"]})
    said.clear()
    sweep.run_sweep(path, good, say=said.append)
    assert said[0] == f"sweep: {path}: 2 runs, 2 of them finished"
    assert sweep.load(path) == good
    assert sweep.num_unfinished(path, good) == 0


def runs_best(path: Path) -> float:
    scores = [json.loads(line).get("score") for line in (path / "metrics.jsonl").read_text().splitlines()]
    return max(score for score in scores if score is not None)


def test_folder_of_another_recipe_is_refused(recipe_file: RecipeFile, store: TargetStore, tmp_path: Path) -> None:
    wanted = asked(recipe_file(), store, seeds=[0])
    path = tmp_path / "sweep"
    wanted.trials[0].open(path / wanted.trials[0].name, wanted.stores).create()
    with pytest.raises(ConfigError, match="begun with another recipe: epochs"):
        sweep.run_sweep(path, replace(wanted, changes=["epochs=2"]), say=print)


def test_mistake_is_said_before_anything_is_trained(
    recipe_file: RecipeFile, store: TargetStore, tmp_path: Path
) -> None:
    wanted = asked(recipe_file(), store, grid={"inputs.image": ["patch_embeddings", "no_such"]})
    with pytest.raises(Exception, match="no_such"):
        sweep.run_sweep(tmp_path / "sweep", wanted, say=print)
    assert not list((tmp_path / "sweep").glob("*/run.json"))


def test_folder_of_something_else_is_refused(recipe_file: RecipeFile, store: TargetStore, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no sweep there"):
        sweep.load(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(RunError, match=r"run exists and is no sweep's folder"):
        sweep.run_sweep(tmp_path / "run", asked(recipe_file(), store), say=print)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]


def test_standings_are_means_over_finished_seeds() -> None:
    found = standings.standings(
        [
            result("a", 0, 10.0),
            result("a", 1, 14.0),
            result("a", 2, 99.0, "failed"),
            result("b", 0, 50.0),
            result("c", 0, None, "failed"),
        ],
        "rsum",
    )
    assert [(one.recipe, one.values) for one in found] == [("b", [50.0]), ("a", [10.0, 14.0]), ("c", [])]
    assert found[1].mean == 12.0
    assert found[1].deviation == pytest.approx(8**0.5)


def test_less_is_better_of_ranks() -> None:
    found = standings.standings([result("a", 0, 10.0), result("b", 0, 50.0)], "mean_rank")
    assert [(one.recipe, one.mean) for one in found] == [("b", 50.0), ("a", 90.0)]


def test_next_folder_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.new_path() == runs.RUNS / "sweep-001"
    (tmp_path / "runs/sweep-007").mkdir(parents=True)
    assert sweep.new_path() == runs.RUNS / "sweep-008"
