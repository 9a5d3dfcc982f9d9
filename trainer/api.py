"""The trainer from a notebook: open a store, look at its batches, train, embed, export.

    from trainer import api as training

docs/api.md shows all of it. Settings are those of a recipe: `epochs=3`, or `**{"optimizer.learning_rate": 1e-4}`.
Mistakes raise children of `contract.errors.UserError`, whose text is the line that a command would print.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.store import TargetStore

if TYPE_CHECKING:
    from contract.storage import StorePath
    from trainer.batch import Batch

Stores = TargetStore | str | Path | Sequence[TargetStore | str | Path]


def open_store(path: str | Path) -> TargetStore:
    """A target store, at a path or a URL such as s3://..., whose manifest is intact."""
    store = TargetStore.open(_path(path))
    store.require_intact_manifest()
    return store


def batches(
    stores: Stores, recipe: str | Path = "shre", *, num_batches: int | None = None, **settings: Any
) -> Iterator[Batch]:
    """The batches that a run of this recipe would train on, in its order; an epoch of them unless told otherwise.

    `recipe` is a shipped name or a YAML file. `batch.inputs[modality].values` are float [B, T, D],
    `batch.targets[name]` float [B, ...]; a batch is valid until the next one is asked for.
    """
    from trainer.device import Device
    from trainer.loader import Loader
    from trainer.recipes import Recipe
    from trainer.resolve import resolve
    from trainer.runs import open_stores

    made = _recipe(recipe, settings, Recipe)
    streams = resolve(made, open_stores(made, _paths(stores)))
    num_steps = streams.steps_per_epoch if num_batches is None else num_batches
    yield from Loader(streams, 0, num_steps, Device.choose(made.precision).name)


def train(stores: Stores, recipe: str | Path = "shre", *, run: str | Path | None = None, **settings: Any) -> Path:
    """Train a student to its end, and return the run's folder; one that was stopped in `run` goes on.

    Without `run` it is the next free folder under runs/.
    """
    from trainer import runs
    from trainer.fit import fit
    from trainer.recipes import Recipe

    path = None if run is None else Path(run)
    if path is not None and (path / "run.json").exists():
        begun = runs.resume(path, _paths(stores), _recipe_file(recipe), _overrides(settings))
    else:
        begun = runs.begin(_recipe(recipe, settings, Recipe), _paths(stores), path)
    if not begun.record["finished"]:
        fit(begun)
    return begun.path


def embed(run: str | Path, stores: Stores = (), *, splits: Sequence[str] = ()) -> list[Path]:
    """Embed more with a finished run: other splits, or stores of other datasets; returns the student stores."""
    from trainer import runs, student_stores

    return student_stores.grow(runs.resume(Path(run), []), splits, _paths(stores))


def export(
    run: str | Path,
    folder: str | Path | None = None,
    *,
    int8: bool = False,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write a finished run's students as ONNX with all that they need, by default into RUN/export; returns it."""
    from trainer import runs
    from trainer.export import bundle

    to = None if folder is None else Path(folder)
    return bundle.write(runs.resume(Path(run), []), to, int8=int8, say=say or _say)


def _recipe(recipe: str | Path, settings: Mapping[str, Any], kind: type[Any]) -> Any:
    from contract import config

    return config.load(_recipe_file(recipe), kind, _overrides(settings))


def _recipe_file(recipe: str | Path) -> Path:
    from contract import config

    return config.find("configs/trainer", str(recipe))


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _paths(stores: Stores) -> list[StorePath]:
    several = [stores] if isinstance(stores, TargetStore | str | Path) else stores
    return [store.path if isinstance(store, TargetStore) else _path(store) for store in several]


def _path(path: str | Path) -> StorePath:
    from contract.storage import store_path

    return store_path(str(path))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
