"""What a manifest holds, in figures, a line each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from contract.manifest import NO_LABEL, SPLITS, Manifest
from contract.tables import blocks

MOST_SHOWN = 5
PLURALS = {"image": "images", "text": "captions", "audio": "sounds"}


def lines(manifest: Manifest) -> Iterator[str]:
    """Counts by split, what is paired with what, languages and labels."""
    yield from _splits(manifest)
    for kind in manifest.pairs:
        yield _pairs(manifest, kind)
    languages = manifest.languages()
    if languages:
        counts = (f"{name or 'not said'} {count:,}" for name, count in sorted(languages.items()))
        yield f"languages of captions: {', '.join(counts)}"
    for modality in manifest.modalities:
        yield from _labels(manifest, modality)


def _splits(manifest: Manifest) -> Iterator[str]:
    yield " " * 10 + "".join(f"{split:>14}" for split in SPLITS)
    for modality in manifest.modalities:
        counts = manifest.splits(modality)
        yield f"{PLURALS[modality]:10}" + "".join(f"{counts.get(split, 0):14,}" for split in SPLITS)


def _pairs(manifest: Manifest, kind: str) -> str:
    """Such as "captions of an image: 5 to 7, median 5; 3 of 8,000 images have none"."""
    first, second = kind.split("-")
    counts = np.zeros(manifest.num_rows(first), np.int64)
    for rows in blocks(manifest.pairs[kind].column(first)):
        np.add.at(counts, rows.to_numpy(), 1)
    having = counts[counts > 0]
    line = f"{PLURALS[second]} of {'an image' if first == 'image' else 'a sound'}: "
    line += f"{_span(having)}, median {np.median(having):g}" if len(having) else "none"
    lacking = len(counts) - len(having)
    return line + (f"; {lacking:,} of {len(counts):,} {PLURALS[first]} have none" if lacking else "")


def _labels(manifest: Manifest, modality: str) -> Iterator[str]:
    table, num_classes = manifest.items[modality], manifest.num_classes
    if not num_classes or pc.max(table.column("label")).as_py() == NO_LABEL:
        return
    counts = {split: np.zeros(num_classes, np.int64) for split in SPLITS}
    unlabelled = 0
    for batch in table.select(["label", "split"]).to_batches():
        labels = batch.column("label").to_numpy()
        unlabelled += int((labels == NO_LABEL).sum())
        for split, count in counts.items():
            is_of = pc.equal(batch.column("split"), split).to_numpy(zero_copy_only=False)
            count += np.bincount(labels[is_of & (labels >= 0)], minlength=num_classes)
    for split, count in counts.items():
        if manifest.splits(modality).get(split):
            yield f"labels of {split} {PLURALS[modality]}: {_classes(count)}"
    if unlabelled:
        yield f"{unlabelled:,} of {table.num_rows:,} {PLURALS[modality]} have no label"


def _classes(counts: npt.NDArray[np.int64]) -> str:
    """Such as "9 of 10 classes, 480 to 520 of each; none of 3"."""
    empty = np.flatnonzero(counts == 0)
    line = f"{len(counts) - len(empty):,} of {len(counts):,} classes"
    if len(empty) == len(counts):
        return line
    having = counts[counts > 0]
    line += f", {_span(having)} of each"
    if len(empty):
        more = f" and {len(empty) - MOST_SHOWN:,} more" if len(empty) > MOST_SHOWN else ""
        line += f"; none of {', '.join(map(str, empty[:MOST_SHOWN]))}{more}"
    return line


def _span(counts: npt.NDArray[np.int64]) -> str:
    least, most = int(counts.min()), int(counts.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
