"""The validation split during training: retrieval in every direction that has pairs, classification by neighbours.

Both are measured by the functions that `eval` reports with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from torch import nn

from contract import ranking
from contract.manifest import Rows
from contract.store import TargetStore
from trainer.device import Device
from trainer.embed import Embeddings, embed
from trainer.resolve import usable_rows
from trainer.streams import Input, Streams

Figures = dict[str, float | int]

# Neighbours that are asked.
KS = (1, 3)

SPLIT = "val"
# Labelled training items that are neighbours, and that ask for theirs; more would take longer than they tell.
MOST_IN_BANK = 1024


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Figures of `retrieval` by direction, such as text-to-image, and of `neighbours` by who asks whom."""

    retrieval: Mapping[str, Figures]
    neighbours: Mapping[str, Figures]


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSet:
    """One store's validation rows, and the pairs among them: positions in `rows`, int64 [p, 2].

    `banks` are labelled training rows of those modalities that have labels in both splits.
    """

    store: TargetStore
    inputs: Mapping[str, Input]
    rows: Mapping[str, Rows]
    pairs: Mapping[tuple[str, str], Rows]
    trained: frozenset[tuple[str, str]]
    banks: Mapping[str, Rows]

    def measure(self, student: nn.Module, device: Device) -> Validated:
        """Embed the rows once and measure all that can be."""
        embeddings = {
            modality: self._embed(student, device, modality, rows) for modality, rows in self.rows.items()
        }
        retrieval = {}
        for (query, gallery), pairs in self.pairs.items():
            if (name := f"{query}-to-{gallery}") not in retrieval:
                ids = (self._ids(modality, self.rows[modality]) for modality in (query, gallery))
                both = ranking.rank_both(embeddings[query], embeddings[gallery], pairs, *ids)
                for way, ranks in zip((name, f"{gallery}-to-{query}"), both, strict=True):
                    figures = ranking.summarise(ranks)
                    retrieval[way] = figures | {"rsum": sum(figures[f"R@{k}"] for k in ranking.KS)}
        neighbours: dict[str, Figures] = {}
        for modality, bank in self.banks.items():
            banked = self._embed(student, device, modality, bank)
            neighbours |= self._classify(modality, embeddings[modality], banked)
        return Validated(retrieval=retrieval, neighbours=neighbours)

    def _classify(self, modality: str, validation: Embeddings, training: Embeddings) -> dict[str, Figures]:
        """Either split asking the other."""
        sides = {}
        for split, rows, vectors in (
            (SPLIT, self.rows[modality], validation),
            ("train", self.banks[modality], training),
        ):
            labels = np.asarray(self.store.manifest.column(modality, "label", rows))
            has_label = labels >= 0
            sides[split] = vectors[has_label], labels[has_label], self._ids(modality, rows[has_label])
        found = {}
        for asking, memory in ((SPLIT, "train"), ("train", SPLIT)):
            (queries, wanted, _), (bank, labels, ids) = sides[asking], sides[memory]
            hits = ranking.neighbour_hits(queries, wanted, bank, labels, ids, [k for k in KS if k <= len(bank)])
            found[f"{modality} {asking} among {memory}"] = {
                f"{name}@{one.k}": 100.0 * float(right.mean())
                for one in hits
                for name, right in (("any", one.any), ("vote", one.vote))
            } | {"num_queries": len(queries), "num_bank": len(bank)}
        return found

    def _embed(self, student: nn.Module, device: Device, modality: str, rows: Rows) -> Embeddings:
        return embed(student, self.store, modality, self.inputs[modality], rows, device)

    def _ids(self, modality: str, rows: Rows) -> list[str]:
        return self.store.manifest.column(modality, "id", rows)

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
                store=store,
                inputs=inputs,
                rows=rows,
                pairs=pairs,
                trained=trained,
                banks=dict(_banks(store, rows, keys, languages)),
            )
    return sets


def _banks(
    store: TargetStore, validation: Mapping[str, Rows], keys: list[str], languages: str | tuple[str, ...]
) -> Iterator[tuple[str, Rows]]:
    """Labelled training rows, from the first to the last, of modalities whose validation rows have labels too."""
    for modality, rows in validation.items():
        labels = np.asarray(store.manifest.column(modality, "label"))
        labelled = np.flatnonzero(usable_rows(store, modality, keys, "train", languages) & (labels >= 0))
        if len(labelled) and (labels[rows] >= 0).any():
            places = np.linspace(0, len(labelled) - 1, min(MOST_IN_BANK, len(labelled)))
            yield modality, labelled[places.astype(np.int64)]
