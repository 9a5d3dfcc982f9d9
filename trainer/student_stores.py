"""The student stores of a run: val and test of its own datasets at its end, others on request."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contract import embeddings, fingerprint
from contract.errors import DataError, RunError
from contract.storage import StorePath
from contract.store import TargetStore, writing
from trainer import pair_scores
from trainer.device import Device
from trainer.embed import grow_student_store, write_student_store
from trainer.resolve import inputs_like
from trainer.runs import STORES, Run
from trainer.state import State
from trainer.streams import Input


def write(run: Run, state: State) -> None:
    """Write the student store of each dataset of the run, from the best checkpoint."""
    state.restore_student(run.best)
    width = run.recipe.student.embedding_dim
    for store, inputs in run.streams.stores:
        path, provenance = embeddings.path(run.path, store.manifest.dataset), _provenance(run, store)
        if not write_student_store(path, state.student, width, store, inputs, provenance, state.device):
            print(f"{store.path}: no items in val or test: nothing to evaluate", file=sys.stderr)
        pair_scores.write(run, state, store, inputs)


def grow(run: Run, splits: Sequence[str], paths: Sequence[StorePath]) -> list[Path]:
    """Embed splits of the run's own stores, or of those at `paths`, which may be of any dataset of its encoders.

    Without `splits`, val and test, and what a call that was killed had begun.
    """
    if not run.record["finished"]:
        raise RunError(f"{run.path} is not finished; `trainer run --run {run.path} --resume` finishes it")
    with writing(run.path):
        state = State(run.recipe, run.streams, Device.choose(run.recipe.precision), is_new=False)
        state.restore_student(run.best)
        return [_grow(run, state, store, inputs, splits) for store, inputs in _chosen(run, paths)]


def of_dataset(run: Run, name: str) -> StorePath:
    """The store of a dataset: the run's own, or stores/NAME.zarr, where precompute puts it."""
    own = {store.manifest.dataset: store.path for store, _ in run.streams.stores}
    path = own.get(name, STORES / f"{name}.zarr")
    if not TargetStore.exists(path):
        raise DataError(
            f"--dataset {name}: the run's datasets are {', '.join(own)}, and {path} is no store; give --store, or "
            f"make it with `pipeline precompute --dataset {name}`"
        )
    return path


def _grow(run: Run, state: State, store: TargetStore, inputs: Mapping[str, Input], splits: Sequence[str]) -> Path:
    path = embeddings.path(run.path, store.manifest.dataset)
    known = _splits(store, inputs)
    present = _splits(TargetStore.open(path), inputs) if TargetStore.exists(path) else set()
    wanted = present | (set(splits) or known & set(embeddings.SPLITS))
    if not wanted or (unknown := wanted - known):
        what = f"split {min(unknown)!r}" if wanted else f"items in {' or '.join(embeddings.SPLITS)}"
        raise DataError(
            f"{store.path} has no {what}; its splits: {', '.join(sorted(known)) or 'none'}; see --split"
        )
    width, provenance = run.recipe.student.embedding_dim, _provenance(run, store)
    grow_student_store(path, state.student, width, store, inputs, provenance, state.device, wanted)
    pair_scores.write(run, state, store, inputs)
    return path


def _chosen(run: Run, paths: Sequence[StorePath]) -> Iterator[tuple[TargetStore, Mapping[str, Input]]]:
    own = {str(store.path): (store, inputs) for store, inputs in run.streams.stores}
    if not paths:
        yield from own.values()
    for path in paths:
        if str(path) in own:
            yield own[str(path)]
            continue
        store = TargetStore.open(path)
        store.require_intact_manifest()
        yield store, inputs_like(run.recipe, run.streams, store)


def _splits(store: TargetStore, inputs: Mapping[str, Input]) -> set[str]:
    return {
        split
        for modality in inputs
        if store.manifest.num_rows(modality)
        for split in store.manifest.splits(modality)
    }


def _provenance(run: Run, store: TargetStore) -> dict[str, Any]:
    streams = run.streams.streams
    return {
        "recipe": {"name": run.recipe.name, "weights": fingerprint.of_file(run.best)},
        "run": str(run.path),
        "checkpoint": "best",
        "store": str(store.path),
        "trained": sorted({stream.kind for stream in streams}),
        "train_splits": sorted({stream.split for stream in streams if stream.store is store}),
    }
