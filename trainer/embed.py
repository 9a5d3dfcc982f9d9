"""Embeddings: of rows of a store, and of its splits as a student store, which `eval` reads."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import nn
from tqdm import tqdm

from contract.embeddings import FIELD, FIELDSET, SPLITS
from contract.encodings import Float32
from contract.manifest import SPLITS as MANIFEST_SPLITS
from contract.manifest import Rows
from contract.schema import Field, FieldSet, shard_rows
from contract.store import Quarantined, TargetStore
from trainer.device import Device
from trainer.streams import Input

BATCH_SIZE = 256

Embeddings = npt.NDArray[np.float32]


def embed(
    student: nn.Module, store: TargetStore, modality: str, input_: Input, rows: Rows, device: Device
) -> Embeddings:
    """The student's embeddings of these rows, float32 [n, D], unit length."""
    return outputs(student, store, modality, input_, rows, device)["embedding"]


@torch.no_grad()
def outputs(
    student: nn.Module, store: TargetStore, modality: str, input_: Input, rows: Rows, device: Device
) -> dict[str, Embeddings]:
    """The student's embeddings of these rows and, if it gives any, their logits: float32 [n, ...] each, by name."""
    was_training = student.training
    student.eval()
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(rows), BATCH_SIZE):
        tokens = input_.load(store, rows[start : start + BATCH_SIZE], device.name, check=True)
        with device.autocast():
            named = student({modality: tokens})
        for name in ("embedding", "logits"):
            if f"{modality}/{name}" in named:
                found.setdefault(name, []).append(named[f"{modality}/{name}"].float().cpu())
    student.train(was_training)
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def write_student_store(
    path: Path,
    student: nn.Module,
    width: int,
    store: TargetStore,
    inputs: Mapping[str, Input],
    provenance: Mapping[str, Any],
    device: Device,
) -> bool:
    """Write a store with every item of val and test and its embedding [width]; False if there are none."""
    shutil.rmtree(path, ignore_errors=True)  # of an earlier attempt: all of it is made again from the checkpoint
    return grow_student_store(path, student, width, store, inputs, provenance, device, SPLITS)


def grow_student_store(
    path: Path,
    student: nn.Module,
    width: int,
    store: TargetStore,
    inputs: Mapping[str, Input],
    provenance: Mapping[str, Any],
    device: Device,
    splits: Collection[str],
) -> bool:
    """Add every item of these splits and its embedding [width] to a store; False if there are none.

    What is there stays as it is: rows are appended, and a call that was killed is continued by the same one.
    """
    manifest = store.manifest.select([name for name in MANIFEST_SPLITS if name in splits])
    modalities = [modality for modality in inputs if manifest.num_rows(modality)]
    if not modalities:
        return False
    written = TargetStore.create(path, manifest)
    for modality in modalities:
        input_ = inputs[modality]
        field = Field(name=FIELD, shape=(width,), encoding=Float32(), about={"norm": 1.0})
        fieldset = FieldSet(
            name=FIELDSET,
            modality=modality,
            fields=(field,),
            batch_size=BATCH_SIZE,
            rows_per_shard=shard_rows((field,)),
            provenance=provenance,
        )
        written.add(fieldset)
        ids, source_ids = (one.manifest.items[modality].column("id") for one in (written, store))
        rows = pc.index_in(ids, value_set=source_ids).to_numpy().astype(np.int64)
        faults = {entry.row: entry for entry in store.quarantined(input_.key)}
        for shard in tqdm(written.missing(fieldset.key), f"embed {modality}", file=sys.stderr):
            new_rows = written.shard_rows(fieldset.key, shard)[written.kept_rows(fieldset.key, shard) :]
            old_rows = rows[new_rows.start : new_rows.stop]
            embeddings = embed(student, store, modality, input_, old_rows, device)
            quarantined = [
                _moved(faults[old], new)
                for old, new in zip(old_rows.tolist(), new_rows, strict=True)
                if old in faults
            ]
            embeddings[[entry.row - new_rows.start for entry in quarantined]] = 0
            written.write_shard(fieldset.key, shard, {FIELD: embeddings}, quarantined)
    return True


def _moved(entry: Quarantined, row: int) -> Quarantined:
    return Quarantined(row=row, id=entry.id, file=entry.file, reason=entry.reason)
