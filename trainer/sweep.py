"""A sweep: many students from one store at once, through Ray Tune.

SWEEP/sweep.json                       what was asked for; the same command, or --sweep alone, goes on with it
      shre,learning_rate=1e-3,seed=0/  a run like any other, with its log.txt; what is finished is never done again
      ...
      runs.csv  standings.csv  standings.png  standings.svg

All runs read the same files, which the machine's page cache holds once. What a sweep is at is told by its runs and
not by Tune: a killed sweep goes on, with more seeds too, and a worker that dies goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from contract import config
from contract.errors import ConfigError, RunError, UserError
from contract.files import replace_file
from contract.schema import difference
from contract.storage import store_path
from contract.store import writing
from trainer import fit, runs, standings
from trainer.cluster import joined
from trainer.recipes import Recipe, decisive
from trainer.runs import Run
from trainer.standings import Result

LOG = "log.txt"
# Where Ray Tune keeps what it knows of a sweep while it lasts.
RAY = "ray"
# Deaths of one run's worker: by the kernel for want of memory, or with its machine.
MOST_DEATHS = 2


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every recipe with every seed and every combination of the grid's values, each setting as `--set` takes it."""

    recipes: Sequence[str]
    seeds: Sequence[int]
    grid: Mapping[str, Sequence[str]]
    changes: Sequence[str]
    stores: Sequence[str]
    metric: str | None

    @property
    def trials(self) -> list[Trial]:
        """All runs, the seeds of a setting one after the other last."""
        self._refuse_overridden()
        shorts = [standings.short(key) for key in self.grid]
        names = {key: key if shorts.count(standings.short(key)) > 1 else standings.short(key) for key in self.grid}
        found: dict[str, Trial] = {}
        for seed, recipe, values in product(self.seeds, self.recipes, product(*self.grid.values())):
            settings = dict(zip(self.grid, values, strict=True))
            stem = Path(recipe).stem
            parts = [stem, *(f"{names[key]}={value}" for key, value in settings.items()), f"seed={seed}"]
            name = re.sub(r"[^\w.,=+-]", "_", ",".join(parts))
            if name in found:
                raise ConfigError(f"two runs of the sweep would both be called {name}; give recipes other names")
            changes = (*self.changes, *(f"{key}={value}" for key, value in settings.items()), f"seed={seed}")
            found[name] = Trial(name=name, recipe=recipe, settings=settings, seed=seed, changes=changes)
        return list(found.values())

    def _refuse_overridden(self) -> None:
        fixed = [change.partition("=")[0] for change in self.changes]
        if "seed" in (*self.grid, *fixed):
            raise ConfigError("seed: a sweep's seeds are given by --seed, such as --seed 0-2")
        if both := next((key for key in self.grid if key in fixed), None):
            raise ConfigError(f"{both} is given by --grid and by --set; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep: its folder's name, and what it is."""

    name: str
    recipe: str
    settings: Mapping[str, str]
    seed: int
    changes: Sequence[str]

    @property
    def file(self) -> Path:
        """The recipe's."""
        return config.find("configs/trainer", self.recipe)

    def load(self) -> Recipe:
        """The recipe with every change."""
        return config.load(self.file, Recipe, self.changes)

    def open(self, path: Path, stores: Sequence[str]) -> Run:
        """The run in `path`, begun or resumed."""
        found = [store_path(store) for store in stores]
        if (path / "run.json").exists():
            return runs.resume(path, found, self.file, self.changes)
        return runs.begin(self.load(), found, path)


def new_path() -> Path:
    """The next runs/sweep-NNN."""
    numbers = [
        int(match[1]) for path in runs.RUNS.glob("sweep-*") if (match := re.fullmatch(r"sweep-(\d+)", path.name))
    ]
    return runs.RUNS / f"sweep-{max(numbers, default=0) + 1:03d}"


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["a.b=1,2"]` -> `{"a.b": ["1", "2"]}`; commas inside brackets and quotes divide nothing."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise ConfigError(f"--grid {text}: expected a.b=value,value,..")
        if key in grid:
            raise ConfigError(f"--grid {text}: {key} is given twice; put all of its values into one --grid")
        grid[key] = list(dict.fromkeys(_divided(values)))
        if "" in grid[key]:
            raise ConfigError(f"--grid {text}: a value is empty; expected a.b=value,value,..")
    return grid


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` or `0-2`."""
    seeds: list[int] = []
    for part in text.split(","):
        if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())):
            raise ConfigError(f"--seed {text}: expected numbers such as 0,1,2 or 0-2, found {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"--seed {text}: {part.strip()} has no numbers; the smaller one comes first")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def load(path: Path, metric: str | None = None) -> Sweep:
    """The sweep that was begun in `path`, ranked by another metric if one is given."""
    try:
        found = Sweep(**json.loads((path / "sweep.json").read_text()))
        return found if metric is None else replace(found, metric=metric)
    except FileNotFoundError as error:
        raise RunError(f"{path}: no sweep there (it has no sweep.json); give --recipe to begin one") from error
    except (ValueError, TypeError) as error:
        raise RunError(f"{path / 'sweep.json'}: damaged: {error}") from error


def run_sweep(
    path: Path,
    sweep: Sweep,
    *,
    say: Callable[[str], None],
    concurrent: int | None = None,
    address: str | None = None,
) -> str:
    """Train what is not finished, `concurrent` runs at a time, and write the standings; the table of them.

    Without `concurrent`, as many as there are GPUs, or half as many as there are cores. `say` gets a line for each
    run that ends and each file.
    """
    trials = sweep.trials
    _refuse_foreign(path, trials)
    with writing(path):
        waiting = [trial for trial in trials if not _is_finished(path / trial.name, trial)]
        sweep = _checked(path, sweep, waiting)
        path.mkdir(parents=True, exist_ok=True)
        replace_file(path / "sweep.json", (json.dumps(asdict(sweep), indent=2) + "\n").encode())
        metric = sweep.metric or trials[0].load().validation.metric
        say(f"sweep: {path}: {len(trials)} runs, {len(trials) - len(waiting)} of them finished")
        problems = _train(path, sweep, waiting, metric, say, concurrent, address) if waiting else {}
        results = [_result(path, trial, problems.get(trial.name, "")) for trial in trials]
        for file in standings.write(path, results, metric):
            say(str(file))
    for name, problem in problems.items():
        if problem:
            say(f"{name}: {problem}")
    _say_unknown(metric, results, say)
    return standings.table(standings.standings(results, metric), metric)


def num_unfinished(path: Path, sweep: Sweep) -> int:
    """Runs that are still to be done, or that failed."""
    return sum(not _is_finished(path / trial.name, trial) for trial in sweep.trials)


def _is_finished(path: Path, trial: Trial) -> bool:
    if not (path / "run.json").exists():
        return False
    changed = difference(decisive(trial.load()), decisive(config.load(path / "config.yaml", Recipe)))
    if changed:
        raise ConfigError(f"{path} was begun with another recipe: {changed}; give the sweep another folder")
    return bool(runs.read_record(path)["finished"])


def _refuse_foreign(path: Path, trials: Sequence[Trial]) -> None:
    """A folder that something else lies in, such as a run's, is no place for a sweep."""
    if (path / "sweep.json").exists() or not path.exists():
        return
    own = {trial.name for trial in trials}
    if not path.is_dir() or any(entry.name not in own and entry.name[0] != "." for entry in path.iterdir()):
        raise RunError(f"{path} exists and is no sweep's folder; give another one with --sweep")


def _checked(path: Path, sweep: Sweep, waiting: Sequence[Trial]) -> Sweep:
    """Have every mistake in what was asked said before anything is trained; the sweep with its stores named."""
    if (path / "sweep.json").exists() and (then := load(path)).stores != sweep.stores and sweep.stores:
        raise ConfigError(f"{path} was begun with {' '.join(f'--store {store}' for store in then.stores)}")
    seen: set[tuple[str, ...]] = set()
    for trial in waiting:
        setting = (trial.recipe, *trial.settings.values())
        if setting not in seen or (path / trial.name).exists():
            run = trial.open(path / trial.name, sweep.stores)
            if (
                not sweep.stores and run.recipe.streams == "auto"
            ):  # the newest one, also if there is a newer one later
                sweep = replace(sweep, stores=[entry["path"] for entry in run.record["stores"]])
        seen.add(setting)
    return sweep


def _result(path: Path, trial: Trial, problem: str) -> Result:
    return standings.result(path / trial.name, Path(trial.recipe).stem, trial.settings, trial.seed, problem)


def _train(
    path: Path,
    sweep: Sweep,
    waiting: Sequence[Trial],
    metric: str,
    say: Callable[[str], None],
    concurrent: int | None,
    address: str | None,
) -> dict[str, str]:
    """{name: why it is not finished, "" if it is}."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would wait for the runs to end; each goes on from its newest checkpoint.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    with joined(address, least_cpus=concurrent or 1) as cluster:
        from ray import tune

        concurrent = min(concurrent or _num_concurrent(cluster), len(waiting))
        share = _share(cluster, concurrent)
        problems = {trial.name: "not finished" for trial in waiting}

        class Progress(tune.Callback):  # type: ignore[misc]
            """A line for each run that ends."""

            num_ended = 0

            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
                self._end(trial.config["name"], result["problem"])

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                name = trial.config["name"]
                self._end(name, f"its worker failed {MOST_DEATHS + 1} times; see {path / name / LOG}")

            def _end(self, name: str, problem: str) -> None:
                self.num_ended += 1
                problems[name] = problem
                trial = next(trial for trial in waiting if trial.name == name)
                value = _result(path, trial, problem).figures.get(metric)
                reached = problem or (f"{metric} {value:.2f}" if value is not None else "finished")
                say(f"{self.num_ended} of {len(waiting)}: {name}: {reached}")

        jobs = {
            trial.name: {
                "trial": trial,
                "path": path / trial.name,
                "stores": sweep.stores,
                "folder": Path.cwd(),
                "num_threads": max(1, int(share["cpu"])),
            }
            for trial in waiting
        }
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_work, jobs=jobs), share),
            param_space={"name": tune.grid_search(list(jobs))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent, trial_dirname_creator=lambda trial: trial.trial_id
            ),
            run_config=tune.RunConfig(
                name=RAY,
                storage_path=str(path.resolve()),
                failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
                callbacks=[Progress()],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(path / RAY, ignore_errors=True)
    return problems


def _work(chosen: Mapping[str, str], jobs: Mapping[str, Mapping[str, Any]]) -> None:
    """One run, from where it is to its end, in a process of Ray's; a user's mistake is not made a second time."""
    import torch
    from ray import tune

    job = jobs[chosen["name"]]
    torch.set_num_threads(job["num_threads"])
    os.chdir(job["folder"])  # where the paths of the recipe and of the stores begin
    job["path"].mkdir(exist_ok=True)
    problem = ""
    with (job["path"] / LOG).open("a", buffering=1) as log, redirect_stderr(log):
        try:
            run = job["trial"].open(job["path"], job["stores"])
            fit.fit(run)
        except (UserError, OSError) as error:
            problem = " ".join(str(error).split())
            print(f"error: {problem}", file=sys.stderr)
    tune.report({"problem": problem})


def _num_concurrent(cluster: Mapping[str, float]) -> int:
    return int(cluster.get("GPU", 0)) or max(1, int(cluster.get("CPU", 1)) // 2)


def _share(cluster: Mapping[str, float], concurrent: int) -> dict[str, float]:
    """What one of `concurrent` runs takes: cores of one machine, and a GPU or an even part of one."""
    import ray

    most = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    share: dict[str, float] = {"cpu": max(1, min(most, int(cluster["CPU"]) // concurrent))}
    if num_gpus := cluster.get("GPU", 0):
        share["gpu"] = 1 / max(1, math.ceil(concurrent / num_gpus))
    return share


def _say_unknown(metric: str, results: Sequence[Result], say: Callable[[str], None]) -> None:
    known = list(dict.fromkeys(name for one in results for name in one.figures))
    if known and metric not in known:
        say(f"no run has a figure {metric}; there are: {', '.join(known)}")


def _divided(values: str) -> Iterator[str]:
    """The parts between the commas that no bracket or quote holds."""
    part, depth, quote = "", 0, ""
    for letter in values:
        if letter == "," and not depth and not quote:
            yield part.strip()
            part = ""
            continue
        if letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "[{") - (letter in "]}")
        part += letter
    yield part.strip()
