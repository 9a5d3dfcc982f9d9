"""Retrieval on the validation split during training: exact ranks, every direction that has pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from torch import nn

from contract import ranking
from contract.manifest import Rows
from contract.store import TargetStore
from trainer.device import Device
from trainer.embed import embed
from trainer.resolve import usable_rows
from trainer.streams import Input, Streams

Figures = dict[str, float | int]

SPLIT = "val"


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSet:
    """One store's validation rows, and the pairs among them: positions in `rows`, int64 [p, 2]."""

    store: TargetStore
    inputs: Mapping[str, Input]
    rows: Mapping[str, Rows]
    pairs: Mapping[tuple[str, str], Rows]
    trained: frozenset[tuple[str, str]]

    def retrieve(self, student: nn.Module, device: Device) -> dict[str, Figures]:
        """Figures for each direction, such as "text-to-image"."""
        embeddings = {
            modality: embed(student, self.store, modality, self.inputs[modality], rows, device)
            for modality, rows in self.rows.items()
        }
        found = {}
        for (query, gallery), pairs in self.pairs.items():
            ids = self.store.manifest.column(gallery, "id", self.rows[gallery])
            ranks = ranking.rank(embeddings[query], embeddings[gallery], pairs, ids)
            figures = ranking.summarise(ranks)
            found[f"{query}-to-{gallery}"] = figures | {"rsum": sum(figures[f"R@{k}"] for k in ranking.KS)}
        return found

    def score(self, figures: Mapping[str, Figures], metric: str) -> float:
        """Mean of `metric` over the trained directions."""
        directions = [pair for pair in self.pairs if pair in self.trained]
        return float(np.mean([figures[f"{query}-to-{gallery}"][metric] for query, gallery in directions]))


def validation_sets(streams: Streams, languages: str | tuple[str, ...]) -> dict[str, ValidationSet]:
    """{dataset: its set} for each store that has trained pairs in the validation split."""
    sets = {}
    for store, inputs in streams.stores:
        keys = [input_.key for input_ in inputs.values()]
        usable = {
            modality: np.flatnonzero(usable_rows(store, modality, keys, SPLIT, languages)) for modality in inputs
        }
        rows = {modality: found for modality, found in usable.items() if len(found)}
        kinds = {stream.pair for stream in streams.streams if stream.store is store}
        trained = frozenset(kinds | {(second, first) for first, second in kinds})
        directions = {pair: store.manifest.positives_among(*pair, rows) for pair in permutations(rows, 2)}
        pairs = {pair: positions for pair, positions in directions.items() if len(positions)}
        if trained & pairs.keys():
            sets[store.manifest.dataset] = ValidationSet(
                store=store, inputs=inputs, rows=rows, pairs=pairs, trained=trained
            )
    return sets
