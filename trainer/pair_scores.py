"""Pair scores of a run's matching head, over the nearest candidates of each query; for `eval retrieval --rerank`.

embeddings -> the k nearest of each query, exactly -> the tokens of both, fused -> the head's logit
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from contract import embeddings, scores
from contract.embeddings import FIELD, FIELDSET
from contract.manifest import Rows
from contract.ranking import nearest
from contract.scores import Direction, Scores
from contract.store import TargetStore
from trainer.embed import BATCH_SIZE
from trainer.objectives.itm import ItmLoss
from trainer.recipes import Recipe
from trainer.runs import Run
from trainer.state import State
from trainer.streams import Input

# Pairs that are fused at once.
PAIRS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """One modality's items of a split: `rows` int64 [n] of the student store, `tokens` [n, T, W], `mask` [n, T]."""

    rows: Rows
    ids: list[str]
    embeddings: npt.NDArray[np.float32]
    tokens: Tensor
    mask: Tensor


@torch.no_grad()
def write(run: Run, state: State, store: TargetStore, inputs: Mapping[str, Input]) -> list[Path]:
    """Write the scores of every trained direction, of each split of the store that the run has embedded.

    Nothing is written by a run without a matching head, or for a language that its recipe does not read.
    """
    head = next((objective for objective in state.objectives if isinstance(objective, ItmLoss)), None)
    path = embeddings.path(run.path, store.manifest.dataset)
    if head is None or not TargetStore.exists(path):
        return []
    student, written = TargetStore.open(path), []
    state.student.eval()
    kinds = {(pair[0], pair[1]) for pair in (stream.pair for stream in run.streams.streams) if len(pair) == 2}
    for pair in sorted(kind for kind in kinds if set(kind) <= set(student.manifest.modalities)):
        for split, language in _parts(student, run.recipe, pair):
            items = {m: _items(state, student, store, inputs, m, split, language) for m in pair}
            if all(len(found.rows) for found in items.values()):
                ways = (
                    Direction(
                        dataset=student.manifest.dataset,
                        split=split,
                        queries=queries,
                        gallery=gallery,
                        language=language,
                    )
                    for queries, gallery in permutations(pair)
                )
                written += [
                    scores.write(run.path, way, _scores(state, head, pair, items, way), student) for way in ways
                ]
    return written


def _parts(student: TargetStore, recipe: Recipe, pair: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """(split, language of its captions) of what is ranked; the language is "" where no captions take part."""
    manifest = student.manifest
    for split in manifest.splits(pair[0]):
        if "text" not in pair:
            yield split, ""
            continue
        asked = sorted(manifest.languages()) if recipe.languages == "all" else recipe.languages
        yield from ((split, one) for one in asked if len(manifest.rows("text", split, languages=[one])))


def _items(
    state: State,
    student: TargetStore,
    store: TargetStore,
    inputs: Mapping[str, Input],
    modality: str,
    split: str,
    language: str,
) -> Items:
    """Those that `eval` ranks: of the split and the language, and decoded."""
    key, manifest = f"{modality}/{FIELDSET}", student.manifest
    rows = manifest.rows(modality, split, languages=[language] if modality == "text" else None)
    rows = rows[student.usable(modality, [key])[rows]]
    ids = manifest.column(modality, "id", rows)
    sources = pc.index_in(pa.array(ids), value_set=store.manifest.items[modality].column("id"))
    tokens, mask = _tokens(state, store, modality, inputs[modality], sources.to_numpy().astype(np.int64))
    vectors = student.load(f"{key}/{FIELD}", rows)
    return Items(rows=rows, ids=ids, embeddings=vectors, tokens=tokens, mask=mask)


def _tokens(state: State, store: TargetStore, modality: str, input_: Input, rows: Rows) -> tuple[Tensor, Tensor]:
    """The student's tokens of these rows, [n, T, W], and which are real, bool [n, T]; on its device."""
    found = []
    for start in range(0, len(rows), BATCH_SIZE):
        tokens = input_.load(store, rows[start : start + BATCH_SIZE], state.device.name)
        with state.device.autocast():
            named = state.student({modality: tokens})
        found.append((named[f"{modality}/tokens"], named[f"{modality}/mask"]))
    most = max((mask.shape[1] for _, mask in found), default=0)
    values = [F.pad(one, (0, 0, 0, most - one.shape[1])) for one, _ in found]
    return torch.cat(values), torch.cat([F.pad(mask, (0, most - mask.shape[1])) for _, mask in found])


def _scores(
    state: State, head: ItmLoss, pair: tuple[str, str], items: Mapping[str, Items], way: Direction
) -> Scores:
    queries, gallery = items[way.queries], items[way.gallery]
    k = min(head.config.top_k, len(gallery.rows))
    candidates = nearest(queries.embeddings, gallery.embeddings, gallery.ids, k)
    places = {way.queries: np.repeat(np.arange(len(candidates)), k), way.gallery: candidates.ravel()}
    found = np.empty(candidates.size, np.float32)
    for start in tqdm(range(0, len(found), PAIRS_AT_ONCE), f"scores {way.name}", file=sys.stderr):
        part = slice(start, start + PAIRS_AT_ONCE)
        sides = []
        for modality in reversed(pair):  # the partner reads the anchor
            of_part = torch.from_numpy(places[modality][part]).to(state.device.name)
            sides += [items[modality].tokens[of_part], items[modality].mask[of_part]]
        with state.device.autocast():
            fused = cast(Any, state.student).fusion(*sides)
            found[part] = head.scores(fused["pooled"]).cpu().numpy()
    return Scores(
        query_rows=queries.rows,
        candidate_rows=gallery.rows[candidates],
        scores=found.reshape(candidates.shape),
    )
