"""What an index finds, held against the exact neighbours; no published figure rests on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import ConfigError
from contract.ranking import KS
from eval import gallery, sample, tradeoff, tuning, vectors
from eval.embedded import Embedded
from eval.gallery import Gallery
from eval.holding import require_folder
from eval.indexes import KINDS, Index
from eval.runs import Student
from eval.sample import Recalls, Sample
from eval.tradeoff import Tradeoff

# Neighbours that an index is asked for.
NUM_CANDIDATES = max(KS)
RECALL = 0.95


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The index that is asked for, the folder that keeps it, the share of the exact neighbours that it is to find.

    With `compare`, the other kinds are tried too.
    """

    folder: Path
    index: Index = KINDS["flat"]
    recall: float = RECALL
    compare: bool = False

    def __post_init__(self) -> None:
        """Refuse a recall that is none, and a file for a folder, before anything is ranked."""
        require_folder(self.folder)
        if not 0 < self.recall <= 1:
            raise ConfigError(f"--recall {self.recall:g}: a share of the exact neighbours, above 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """How an index does on queries of one direction that it was not tuned on, all at once and one by one."""

    recalls: Recalls
    num_queries: int
    queries_per_second: float
    single_queries_per_second: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Indexed:
    """The index that was asked for, its galleries by modality, how it does by direction, and the other kinds."""

    wanted: Wanted
    galleries: Mapping[str, Gallery]
    directions: Mapping[str, Candidates]
    tradeoff: Tradeoff | None


def measure(
    student: Student,
    split: Embedded,
    directions: Sequence[tuple[str, str]],
    wanted: Wanted,
    say: Callable[[str], None],
) -> Indexed:
    """Open or build the index of every gallery, tune it, and measure it in these directions, (queries, gallery)."""
    stored = {name: vectors.stored(student.store, name, items.rows) for name, items in split.items.items()}
    samples = {
        (a, b): sample.samples(stored[a], stored[b], split.items[b].ids, NUM_CANDIDATES) for a, b in directions
    }

    def opened(index: Index, modality: str) -> Gallery:
        description = gallery.describe(
            index,
            run=student.run,
            dataset=student.dataset,
            split=split.split,
            language=split.language,
            modality=modality,
            ids=split.items[modality].ids,
            vectors=stored[modality],
        )
        built = gallery.open_or_build(description, wanted.folder, stored[modality], say)
        among = [tuned for (_, second), (tuned, _) in samples.items() if second == modality]
        tuning.tune(built, among, wanted.recall, say)
        return built

    galleries = {modality: opened(wanted.index, modality) for modality in dict.fromkeys(b for _, b in directions)}
    measured = {f"{a}-to-{b}": _measured(galleries[b], held_out) for (a, b), (_, held_out) in samples.items()}
    compared = None
    if wanted.compare:
        a, b = max(samples, key=lambda way: stored[way[1]].num_rows)
        compared = tradeoff.compare(f"{a}-to-{b}", wanted.index, lambda index: opened(index, b), samples[a, b][1])
    return Indexed(wanted=wanted, galleries=galleries, directions=measured, tradeoff=compared)


def _measured(built: Gallery, held_out: Sample) -> Candidates:
    return Candidates(
        recalls=held_out.recalls(built),
        num_queries=len(held_out.queries),
        queries_per_second=held_out.queries_per_second(built, len(held_out.queries)),
        single_queries_per_second=held_out.queries_per_second(built, 1),
    )
