"""Embeddings on a plane: the two largest principal components, or UMAP where it is installed and asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
import numpy.typing as npt

from contract.errors import MissingExtraError
from contract.manifest import NO_LABEL
from eval.embedded import Embedded
from eval.page.outcomes import evenly

Rows = npt.NDArray[np.int64]
Double = npt.NDArray[np.float64]
Method = Literal["pca", "umap"]

# Of all modalities together: 20 bytes a point on the page, and what a browser draws at once.
NUM_POINTS = 3000
SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """A sample of every modality on a plane.

    By modality: `points` float64 [n, 2], `labels` int64 [n] (`NO_LABEL` without one), `totals` how many items there
    are. `explained` is the share of the variance that the two axes hold, None for UMAP. `distances` are those
    between the modalities' mean embeddings, of length 1 at most.
    """

    method: Method
    points: Mapping[str, Double]
    labels: Mapping[str, Rows]
    totals: Mapping[str, int]
    explained: tuple[float, float] | None
    distances: Mapping[tuple[str, str], float]


def project(split: Embedded, method: Method) -> Projection:
    """Project evenly spaced items of each modality, as many of each."""
    share = NUM_POINTS // len(split.items)
    sample = {name: evenly(np.arange(len(items.rows)), share) for name, items in split.items.items()}
    vectors = {name: split.items[name].embeddings[rows].astype(np.float64) for name, rows in sample.items()}
    together = np.concatenate(list(vectors.values()))
    points, explained = _pca(together) if method == "pca" else (_umap(together), None)
    ends = np.cumsum([len(rows) for rows in sample.values()])[:-1]
    names = list(sample)
    means = {name: values.mean(axis=0) for name, values in vectors.items()}
    return Projection(
        method=method,
        points=dict(zip(names, np.split(points, ends), strict=True)),
        labels={name: labels(split, name)[rows] for name, rows in sample.items()},
        totals={name: len(items.rows) for name, items in split.items.items()},
        explained=explained,
        distances={
            (a, b): float(np.linalg.norm(means[a] - means[b]))
            for place, a in enumerate(names)
            for b in names[place + 1 :]
        },
    )


def require(method: Method) -> None:
    """Refuse a method whose package is not installed."""
    if method == "umap" and find_spec("umap") is None:
        raise MissingExtraError('--map umap needs umap-learn: install "precept[umap]"; --map pca needs nothing')


def labels(split: Embedded, modality: str) -> Rows:
    """The label of every item, int64 [n]; of one without, that of an item which belongs to it."""
    own = _own_labels(split, modality)
    for other in split.items:
        if other == modality or (own != NO_LABEL).all():
            continue
        pairs = split.positives(modality, other)[::-1]
        lent = np.full(len(own), NO_LABEL, np.int64)
        lent[pairs[:, 0]] = _own_labels(split, other)[pairs[:, 1]]
        own = np.where(own == NO_LABEL, lent, own)
    return own


def _own_labels(split: Embedded, modality: str) -> Rows:
    return np.array(split.manifest.column(modality, "label", split.items[modality].rows), np.int64)


def _pca(vectors: Double) -> tuple[Double, tuple[float, float]]:
    """The two largest principal components of float64 [n, d], as [n, 2], and their shares of the variance."""
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    values, axes = values[::-1].clip(0), axes[:, ::-1][:, :2]
    # An axis has no sign of its own: its largest entry is made positive, so that the map is the same each time.
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    points = np.zeros((len(vectors), 2))
    points[:, : axes.shape[1]] = centred @ axes
    shares = np.zeros(2)
    shares[: axes.shape[1]] = values[:2] / (values.sum() or 1.0)
    return points, (float(shares[0]), float(shares[1]))


def _umap(vectors: Double) -> Double:
    import umap

    num_neighbours = max(2, min(15, len(vectors) - 1))
    model = umap.UMAP(n_components=2, n_neighbors=num_neighbours, metric="cosine", random_state=SEED, n_jobs=1)
    return np.asarray(model.fit_transform(vectors), np.float64)
