"""A run: its folder, its recipe and the streams it reads; how one is begun and how one is resumed.

RUN/config.yaml        the resolved recipe
    run.json           recipe, stores with their fingerprints, trained pairs, its warm start, whether it is finished
    environment.json   code, packages and machine, once more for each start in which they have changed
    metrics.jsonl      one JSON object per logged step, and per validation; beside it what the recipe's `logs` name
    checkpoints/       the newest states; best.safetensors: the state at the best validation
    embeddings/        a student store per dataset
    scores/            what a matching head says of pairs (contract/scores.py)
    captions/          what a decoder says of items (`trainer caption`)
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from contract import config, fingerprint
from contract.errors import ConfigError, RunError, StoreError
from contract.files import replace_file
from contract.schema import difference
from contract.storage import StorePath, is_url, store_path
from contract.store import TargetStore, newest_store
from trainer import environment, logs
from trainer.checkpoint import Kept
from trainer.ranks import Ranks
from trainer.recipes import Recipe, decisive
from trainer.resolve import resolve
from trainer.streams import Streams

STORES = Path("stores")
RUNS = Path("runs")

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that can be trained; `record` is the content of run.json."""

    path: Path
    recipe: Recipe
    streams: Streams
    record: Record

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Kept:
        """The newest states."""
        return Kept(folder=self.path / "checkpoints", num=self.recipe.checkpoints.keep)

    @property
    def best(self) -> Path:
        """The state at the best validation."""
        return self.path / "best.safetensors"

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer in an epoch."""
        return max(1, self.streams.steps_per_epoch // self.recipe.accumulate)

    @property
    def num_steps(self) -> int:
        """Steps of the optimizer in the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def measured_by(self) -> str:
        """Eval's command for it: without pairs there is nothing to retrieve."""
        return "retrieval" if any(len(stream.pair) == 2 for stream in self.streams.streams) else "neighbours"

    def shared(self, ranks: Ranks) -> Run:
        """The run as one of its ranks reads it."""
        return replace(self, streams=self.streams.shared(ranks.rank, ranks.num))

    def create(self) -> None:
        """Make the folder; in that of a run that is continued, put down what has changed."""
        self.path.mkdir(parents=True, exist_ok=True)
        file, text = self.path / "config.yaml", config.dump(self.recipe)
        if not file.exists() or file.read_text() != text:
            replace_file(file, text.encode())
        environment.record(self.path / "environment.json")
        if not (self.path / "run.json").exists():
            _write_record(self.path, self.record)

    def finish(self) -> None:
        """Mark the run finished."""
        self.record["finished"] = True
        _write_record(self.path, self.record)


def begin(recipe: Recipe, store_paths: Sequence[StorePath], path: Path | None) -> Run:
    """A new run, in `path` or in the next free folder under runs/; nothing is written yet."""
    if path is not None and (path / "run.json").exists():
        raise RunError(f"{path} exists; continue it with --resume, or give another --run")
    logs.require(recipe.logs)
    stores = open_stores(recipe, store_paths)
    streams = resolve(recipe, stores)
    path = path or next_path(RUNS, recipe.name, "+".join(trained(streams)))
    record = {
        "recipe": recipe.name,
        "stores": _describe_stores(streams, stores),
        "trained": trained(streams),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": False,
    }
    if recipe.warm_start is not None:
        record["warm_start"] = _describe_start(Path(recipe.warm_start))
    return Run(path=path, recipe=recipe, streams=streams, record=record)


def resume(
    path: Path | None,
    store_paths: Sequence[StorePath],
    recipe_file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Run:
    """The run in `path`, or the newest unfinished one; a recipe that is given again must be the run's own.

    It may keep other checkpoints, or log elsewhere: the run then goes on so.
    """
    path = path or newest_unfinished(RUNS)
    record = read_record(path)
    recipe = config.load(path / "config.yaml", Recipe)
    asked = config.load(recipe_file or path / "config.yaml", Recipe, overrides)
    changed = difference(decisive(asked), decisive(recipe))
    if changed:
        raise ConfigError(f"{path} was begun with another recipe: {changed}; a resumed run keeps its own")
    logs.require(asked.logs)
    return reopen(path, asked, record, store_paths)


def reopen(path: Path, recipe: Recipe, record: Record, store_paths: Sequence[StorePath] = ()) -> Run:
    """The run of this record, over its own stores or those given, which must be the same ones."""
    stores = open_stores(recipe, store_paths or [store_path(entry["path"]) for entry in record["stores"]])
    streams = resolve(recipe, stores)
    _require_same_stores(record, _describe_stores(streams, stores))
    return Run(path=path, recipe=recipe, streams=streams, record=record)


def open_stores(recipe: Recipe, paths: Sequence[StorePath]) -> list[TargetStore]:
    """The stores given and those that the recipe's streams name; without any, the newest under stores/."""
    streams = () if recipe.streams == "auto" else recipe.streams
    named = [store_path(stream.store) for stream in streams if stream.store]
    # What is neither is the name of a dataset, whose store is given with --store.
    chosen = [*paths, *(path for path in named if is_url(path) or (Path(path) / "precept").is_dir())]
    if not chosen:
        chosen = [newest_store(STORES)]
        print(f"store: {chosen[0]} (the newest under {STORES}/)", file=sys.stderr)
    return [_open(path, recipe.expect) for path in dict.fromkeys(chosen)]


def next_path(folder: Path, recipe: str, dataset: str) -> Path:
    """FOLDER/<recipe>-<dataset>-<the next free number>."""
    pattern = re.compile(rf"{re.escape(recipe)}-{re.escape(dataset)}-(\d+)")
    matches = [pattern.fullmatch(path.name) for path in folder.glob("*")]
    highest = max((int(match[1]) for match in matches if match), default=0)
    return folder / f"{recipe}-{dataset}-{highest + 1:03d}"


def newest_unfinished(folder: Path) -> Path:
    """The unfinished run under `folder` whose files changed last."""
    paths = [path.parent for path in folder.glob("*/run.json")]
    unfinished = [path for path in paths if not read_record(path)["finished"]]
    if not unfinished:
        raise RunError(f"no unfinished run under {folder}/; `trainer run` starts a new one")
    return max(unfinished, key=lambda path: max(file.stat().st_mtime for file in path.iterdir()))


def read_record(path: Path) -> Record:
    """The content of a run's run.json."""
    try:
        return cast(Record, json.loads((path / "run.json").read_text()))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no run there (it has no run.json)") from error
    except ValueError as error:
        raise RunError(f"{path / 'run.json'}: damaged: {error}") from error


def trained(streams: Streams) -> dict[str, list[str]]:
    """{dataset: its pair kinds}."""
    kinds: dict[str, list[str]] = {}
    for stream in streams.streams:
        known = kinds.setdefault(stream.store.manifest.dataset, [])
        if stream.kind not in known:
            known.append(stream.kind)
    return kinds


def pairs_of(record: Record) -> tuple[list[str], dict[str, list[str]]]:
    """What tells of a run's record whether it read the same pairs of the same items as another."""
    return [store["fingerprints"]["manifest"] for store in record["stores"]], record["trained"]


def _open(path: StorePath, expect: Mapping[str, Mapping[str, Any]]) -> TargetStore:
    store = TargetStore.open(path)
    store.require_intact_manifest()
    for field in expect:
        if "/" not in field:
            raise ConfigError(f"expect.{field}: name the modality too, as in image/{field}")
    store.require({store.find(*field.split("/", 1)): parts for field, parts in expect.items()})
    return store


def _describe_stores(streams: Streams, stores: Sequence[TargetStore]) -> list[Record]:
    """In the order given: a resumed run opens them in the same one, which decides its streams' numbers."""
    described = []
    for store in stores:
        keys = sorted({key for stream in streams.streams if stream.store is store for key in stream.keys})
        fieldsets = {key: store.fieldsets[key] for key in keys}
        described.append(
            {
                "path": str(store.path),
                "dataset": store.manifest.dataset,
                "fingerprints": {"manifest": store.manifest.fingerprint}
                | {key: fieldset.fingerprint for key, fieldset in fieldsets.items()},
                "made_of": {key: fieldset.identity for key, fieldset in fieldsets.items()},
            }
        )
    # Through JSON, so that what is written down and what is read back compare equal.
    return cast(list[Record], json.loads(json.dumps(described)))


def _describe_start(path: Path) -> Record:
    """The run that a new one begins with, and which file of it."""
    try:
        record = read_record(path)
    except RunError as error:
        raise ConfigError(f"warm_start: {error}") from error
    if not record["finished"]:
        raise ConfigError(f"warm_start: {path} is not finished; `trainer run --run {path} --resume` finishes it")
    file = path / "best.safetensors"
    if not file.is_file():
        raise ConfigError(f"warm_start: {file} is not there any more; train that run again")
    return {"run": str(path), "weights": fingerprint.of_file(file)}


def _require_same_stores(record: Record, found: Sequence[Record]) -> None:
    """Raise `StoreError` if a store is not the one that the run was begun with, and say which part differs."""
    recorded = record["stores"]
    if [entry["dataset"] for entry in found] != [entry["dataset"] for entry in recorded]:
        options = " ".join(f"--store {entry['path']}" for entry in recorded)
        raise StoreError(f"the run was begun with other stores: {options}")
    for now, then in zip(found, recorded, strict=True):
        for part, known in then["fingerprints"].items():
            if now["fingerprints"].get(part) != known:
                what = difference(now["made_of"].get(part), then["made_of"].get(part))
                raise StoreError(
                    f"{now['path']} is not the store that this run was begun with: {part} differs: "
                    f"{what or 'other items, captions, splits or pairs'}; give that store, or begin a new run"
                )


def _write_record(path: Path, record: Record) -> None:
    replace_file(path / "run.json", (json.dumps(record, indent=2) + "\n").encode())
