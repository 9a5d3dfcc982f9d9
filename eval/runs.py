"""Runs on the disk: which is the newest, and the student store inside one.

RUN/run.json                        recipe, stores, whether it is finished
RUN/embeddings/<dataset>.zarr       the student's embeddings of the splits val and test
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import embeddings
from contract.embeddings import FIELDSET
from contract.errors import RunError, StoreError
from contract.manifest import MODALITIES, pair_kind
from contract.store import TargetStore


@dataclass(frozen=True, kw_only=True, eq=False)
class Student:
    """A finished run's embeddings of one dataset.

    `trained` holds the pair kinds that the run was trained on, `train_splits` the splits of this dataset.
    """

    run: Path
    recipe: str
    dataset: str
    store: TargetStore
    trained: frozenset[str]
    train_splits: frozenset[str]

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it embeds, in the order image, text, audio."""
        return tuple(name for name in MODALITIES if f"{name}/{FIELDSET}" in self.store.fieldsets)

    def is_trained(self, first: str, second: str) -> bool:
        """Whether pairs of these two modalities were trained on."""
        return pair_kind(first, second) in self.trained


def newest_run(folder: Path) -> Path:
    """The run under `folder` that was changed last, of those that are finished."""
    runs = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    finished = [path.parent for path in runs if _is_finished(path.parent)]
    if finished:
        return finished[0]
    if runs:
        raise _unfinished(runs[0].parent)
    raise RunError(f"no run under {folder}/; `trainer run` makes one, --run DIR names one elsewhere")


def open_student(run: Path, dataset: str | None) -> Student:
    """Open the student store of a finished run; `dataset` says which where there are several."""
    if not (run / "run.json").is_file():
        raise RunError(f"{run}: no run there (it has no run.json); `trainer run` makes one")
    if not _is_finished(run):
        raise _unfinished(run)
    known = embeddings.datasets(run)
    if not known:
        raise RunError(f"{run} has no embeddings: its datasets have no items in the splits val and test")
    if dataset is None and len(known) > 1:
        raise RunError(f"{run} embedded several datasets: {', '.join(known)}; choose one with --dataset")
    if dataset is not None and dataset not in known:
        raise RunError(f"{run} has no embeddings of dataset {dataset!r}; it has: {', '.join(known)}")
    name = dataset or known[0]
    store = TargetStore.open(embeddings.path(run, name))
    store.require_intact_manifest()
    return _student(run, name, store)


def _student(run: Path, dataset: str, store: TargetStore) -> Student:
    keys = [key for key in store.fieldsets if key.endswith(f"/{FIELDSET}")]
    if not keys:
        raise StoreError(f"{store.path} holds no student's embeddings; {_remedy(run)}")
    for key in keys:
        if missing := store.missing(key):
            raise RunError(
                f"{store.path} is incomplete: {key} lacks {len(missing)} of {store.num_shards(key)} shards; "
                f"`trainer embed --run {run}`, with the --store it was given, writes them"
            )
    provenance = store.fieldsets[keys[0]].provenance
    for part in ("trained", "train_splits"):
        if part not in provenance:
            raise StoreError(f"{store.path}: {keys[0]} does not say what was trained on: it has no {part!r}")
    return Student(
        run=run,
        recipe=str(_read(run).get("recipe", "")),
        dataset=dataset,
        store=store,
        trained=frozenset(provenance["trained"]),
        train_splits=frozenset(provenance["train_splits"]),
    )


def _is_finished(run: Path) -> bool:
    return bool(_read(run).get("finished"))


def _read(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read: {error}") from error
    if not isinstance(tree, dict):
        raise RunError(f"{path}: expected an object, found {type(tree).__name__}")
    return tree


def _unfinished(run: Path) -> RunError:
    return RunError(f"{run} is not finished, it has no embeddings to evaluate; {_remedy(run)}")


def _remedy(run: Path) -> str:
    return f"`trainer run --run {run} --resume` writes them"
