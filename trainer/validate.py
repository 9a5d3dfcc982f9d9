"""The validation split during training: retrieval in every direction that has pairs, classification by neighbours.

Both are measured by the functions that `eval` reports with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from torch import nn

from contract import ranking
from contract.errors import ConfigError
from contract.manifest import Rows
from contract.store import TargetStore
from trainer.device import Device
from trainer.embed import Embeddings, embed, outputs
from trainer.recipes import Collapse, Validation
from trainer.resolve import usable_rows
from trainer.state import EMA, State
from trainer.streams import Input, Streams

Figures = dict[str, float | int]

# Neighbours that are asked.
KS = (1, 3)
# Figures of directions whose means over all that were trained are figures too, and those of which less is better.
MEANS = ("R@1", "R@5", "R@10", "rsum", "mean_rank", "median_rank", "mAP@R")
# Those of classifications by neighbours, val among train.
NEIGHBOUR_MEANS = ("any@1", "any@3", "vote@3")
LOWER = ("mean_rank", "median_rank")

SPLIT = "val"
# Labelled training items that are neighbours, and that ask for theirs; more would take longer than they tell.
MOST_IN_BANK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSet:
    """One store's validation rows, and the pairs among them: positions in `rows`, int64 [p, 2].

    `banks` are labelled training rows of those modalities that have labels in both splits.
    """

    store: TargetStore
    inputs: Mapping[str, Input]
    rows: Mapping[str, Rows]
    pairs: Mapping[tuple[str, str], Rows]
    trained: frozenset[tuple[str, ...]]
    banks: Mapping[str, Rows]

    def measure(self, student: nn.Module, device: Device) -> Figures:
        """Embed the rows once and measure all that can be: figures such as text-to-image/R@1 and image/spread."""
        given = {
            modality: outputs(student, self.store, modality, self.inputs[modality], rows, device)
            for modality, rows in self.rows.items()
        }
        embeddings = {modality: named["embedding"] for modality, named in given.items()}
        figures: Figures = {}
        for modality, named in given.items():
            figures |= self._accuracy(modality, named.get("logits"))
        for query, gallery in combinations(self.rows, 2):
            if (query, gallery) in self.pairs:
                ids = (self._ids(modality, self.rows[modality]) for modality in (query, gallery))
                pairs = self.pairs[query, gallery]
                both = ranking.rank_both(embeddings[query], embeddings[gallery], pairs, *ids)
                for way, ranks in zip((f"{query}-to-{gallery}", f"{gallery}-to-{query}"), both, strict=True):
                    found = ranking.summarise(ranks)
                    found["rsum"] = sum(found[f"R@{k}"] for k in ranking.KS)
                    figures |= _under(way, found)
        for modality, bank in self.banks.items():
            training = embed(student, self.store, modality, self.inputs[modality], bank, device)
            figures |= self._classify(modality, embeddings[modality], training)
        return figures | {f"{modality}/spread": spread(vectors) for modality, vectors in embeddings.items()}

    @property
    def trained_directions(self) -> list[str]:
        """Those that have pairs, such as text-to-image."""
        return [f"{query}-to-{gallery}" for query, gallery in self.pairs if (query, gallery) in self.trained]

    def _classify(self, modality: str, validation: Embeddings, training: Embeddings) -> Figures:
        """Either split asking the other."""
        sides = {}
        for split, rows, vectors in (
            (SPLIT, self.rows[modality], validation),
            ("train", self.banks[modality], training),
        ):
            labels = np.asarray(self.store.manifest.column(modality, "label", rows))
            has_label = labels >= 0
            sides[split] = vectors[has_label], labels[has_label], self._ids(modality, rows[has_label])
        figures: Figures = {}
        for asking, memory in ((SPLIT, "train"), ("train", SPLIT)):
            (queries, wanted, _), (bank, labels, ids) = sides[asking], sides[memory]
            hits = ranking.neighbour_hits(queries, wanted, bank, labels, ids, [k for k in KS if k <= len(bank)])
            found = {
                f"{name}@{one.k}": 100.0 * float(right.mean())
                for one in hits
                for name, right in (("any", one.any), ("vote", one.vote))
            }
            counts = {"num_queries": len(queries), "num_bank": len(bank)}
            figures |= _under(f"{modality} {asking} among {memory}", found | counts)
        return figures

    def _accuracy(self, modality: str, logits: Embeddings | None) -> Figures:
        """Top-1 of the student's logits, float32 [n, C], where the classes are those of the items' labels."""
        labels = np.asarray(self.store.manifest.column(modality, "label", self.rows[modality]))
        if logits is None or logits.shape[1] != self.store.manifest.num_classes or not (labels >= 0).any():
            return {}
        right = logits.argmax(axis=1) == labels
        return {f"{modality}/accuracy": 100.0 * float(right[labels >= 0].mean())}

    def _ids(self, modality: str, rows: Rows) -> list[str]:
        return self.store.manifest.column(modality, "id", rows)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a validation says of the run: the metric and its value, and whether that is the best so far."""

    metric: str
    score: float
    is_best: bool
    shown: str

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.score:.4g}{' (best)' if self.is_best else ''}{self.shown and f': {self.shown}'}"
        )


def measure(sets: Mapping[str, ValidationSet], state: State) -> Figures:
    """The figures of every dataset, DATASET/text-to-image/R@1 and so on, and their means over trained directions.

    Those of the moving average, where there is one, stand under `ema/`.
    """
    students = {"": state.student} | ({} if state.ema is None else {EMA: state.ema.module})
    figures: Figures = {}
    for prefix, student in students.items():
        found: Figures = {}
        for dataset, set_ in sets.items():
            found |= _under(dataset, set_.measure(student, state.device))
        trained = [f"{dataset}/{way}" for dataset, set_ in sets.items() for way in set_.trained_directions]
        asked = [f"{dataset}/{m} {SPLIT} among train" for dataset, set_ in sets.items() for m in set_.banks]
        for names, ways in ((MEANS, trained), (NEIGHBOUR_MEANS, asked)):
            values = {name: [found[f"{way}/{name}"] for way in ways if f"{way}/{name}" in found] for name in names}
            found |= {name: float(np.mean(of_ways)) for name, of_ways in values.items() if of_ways}
        figures |= {f"{prefix}{name}": value for name, value in found.items()}
    return figures


def judge(figures: Figures, config: Validation, state: State) -> Verdict:
    """Hold the metric against the best so far, which is kept in the state; may end the run."""
    metric = config.metric
    if metric not in figures:
        raise ConfigError(f"validation.metric {metric!r} is no figure of this run; there are: {', '.join(figures)}")
    score = figures[metric]
    is_best = state.best is None or (score < state.best if metric.endswith(LOWER) else score > state.best)
    state.best, state.num_worse = (score, 0) if is_best else (state.best, state.num_worse + 1)
    if config.patience is not None and state.num_worse >= config.patience:
        state.stopped = f"{metric} has not been better than {state.best:.4g} for {state.num_worse} validations"
    _watch_spread(figures, config.collapse, state)
    return Verdict(metric=metric, score=score, is_best=is_best, shown=_behind(metric, figures))


def spread(embeddings: Embeddings) -> float:
    """How much float32 [n, D] of unit length differ: the root of the sum of the dimensions' variances, 0 to 1.

    1 - |mean|^2 is that sum: 0 where all are one vector, near 1 where they point everywhere.
    """
    mean = embeddings.mean(axis=0, dtype=np.float64)
    return float(np.sqrt(max(0.0, 1.0 - mean @ mean)))


def _behind(metric: str, figures: Figures) -> str:
    """The figures of single directions that a mean is of; "" for any other metric."""
    prefix = EMA if metric.startswith(EMA) else ""
    end = f"/{metric.removeprefix(EMA)}"
    names = [name for name in figures if name.endswith(end) and name.startswith(EMA) == bool(prefix)]
    shown = [(name.removeprefix(prefix).removesuffix(end), figures[name]) for name in names if name != metric]
    return ", ".join(f"{way} {value:.4g}" for way, value in shown)


def _watch_spread(figures: Figures, config: Collapse, state: State) -> None:
    for name, value in figures.items():
        if name.endswith("/spread") and not name.startswith(EMA) and value < config.below:
            what = (
                f"the embeddings have collapsed: {name} is {value:.3f}, under {config.below:g}; see the learning "
                "rate and the negatives"
            )
            if config.action == "stop":
                state.stopped = what
            print(f"warning: {what}", file=sys.stderr)


def _under(prefix: str, figures: Figures) -> Figures:
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def validation_sets(streams: Streams, languages: str | tuple[str, ...]) -> dict[str, ValidationSet]:
    """{dataset: its set} for each store that has trained pairs, or trained items with labels, in the split."""
    sets = {}
    for store, inputs in streams.stores:
        keys = [input_.key for input_ in inputs.values()]
        usable = {
            modality: np.flatnonzero(usable_rows(store, modality, keys, SPLIT, languages)) for modality in inputs
        }
        rows = {modality: found for modality, found in usable.items() if len(found)}
        kinds = {stream.pair for stream in streams.streams if stream.store is store}
        trained = frozenset(kinds | {kind[::-1] for kind in kinds})
        directions = {pair: store.manifest.positives_among(*pair, rows) for pair in permutations(rows, 2)}
        pairs = {pair: positions for pair, positions in directions.items() if len(positions)}
        banks = dict(_banks(store, rows, keys, languages))
        if trained & pairs.keys() or any((modality,) in trained for modality in banks):
            sets[store.manifest.dataset] = ValidationSet(
                store=store,
                inputs=inputs,
                rows=rows,
                pairs=pairs,
                trained=trained,
                banks=banks,
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
