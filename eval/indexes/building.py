"""An index in the making: checked, trained on a sample, filled block by block."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from contract.errors import ConfigError
from eval.indexes.library import core, library, outspoken, reason
from eval.vectors import Vectors

SEED = 0
# FAISS warns below 39 and takes no more than 256.
TRAINING_PER_CENTROID = 64
# The centroids of a code of 8 bits, FAISS's own choice where the string names none.
BYTE = 256
# Numbers at which FAISS ends the process, or never ends: 0 of anything, graphs of too few edges.
NOTHING = r"[A-Za-z]*(?<!\d)0+(?!\d)|HNSW0*1(?!\d)|NSG0*[1-7](?!\d)"
UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20}


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """A filled FAISS index; `num_training` vectors were its sample, 0 where nothing is trained."""

    index: Any
    num_training: int
    build_s: float


def build(factory: str, vectors: Vectors, name: str, say: Callable[[str], None]) -> Built:
    """Build the index that FAISS's `factory` string describes; no more than the sample and a block are in memory.

    `name` stands in what is said and in errors.
    """
    start = time.perf_counter()
    index = _empty(factory, vectors, name)
    num_training = 0 if index.is_trained else min(vectors.num_rows, _num_training(factory))
    try:
        with tqdm(total=vectors.num_rows, desc=f"train {name}", unit="vector", leave=False) as progress:
            if num_training:
                sample = np.random.default_rng(SEED).choice(vectors.num_rows, num_training, replace=False)
                with outspoken(name, say):
                    index.train(vectors.read(np.sort(sample)))
            progress.set_description(f"index {name}")
            for rows, block in vectors.blocks():
                index.add(block)
                progress.update(len(rows))
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"--index-factory {factory}: FAISS can't build it for the {vectors.num_rows:,} vectors of {name}: "
            f"{reason(error)}; choose another, `flat` works for all"
        ) from error
    return Built(index=index, num_training=num_training, build_s=time.perf_counter() - start)


def _empty(factory: str, vectors: Vectors, name: str) -> Any:
    """An index without vectors, sure to rank by inner product."""
    faiss = library()
    if not re.fullmatch(r"[!-~]{1,100}", factory):
        raise ConfigError(f"--index-factory {factory[:100]!r}: expected something like IVF1024,PQ32 without spaces")
    if nothing := re.search(NOTHING, factory):
        raise ConfigError(f"--index-factory {factory}: {nothing[0]!r} is too few to build an index of")
    num_centroids = max(_centroids(factory), default=0)
    if num_centroids > vectors.num_rows:  # FAISS takes the memory for them before it finds out
        raise ConfigError(
            f"--index-factory {factory}: {num_centroids:,} centroids for {vectors.num_rows:,} vectors of {name}; "
            f"ask for fewer, or for `ivf`, which takes as many as there are vectors for"
        )
    try:
        index = faiss.index_factory(vectors.width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"--index-factory {factory}: FAISS has no such index for inner products of vectors of width "
            f"{vectors.width}: {reason(error)}"
        ) from error
    inner = core(index)
    metrics = {index.metric_type, inner.metric_type}
    if isinstance(inner, faiss.IndexIVF):
        metrics.add(inner.quantizer.metric_type)
    # FAISS has indexes that take the metric and don't heed it: HNSW16_PQ4 ranks by distance all the same.
    if metrics != {faiss.METRIC_INNER_PRODUCT}:
        raise ConfigError(f"--index-factory {factory}: FAISS has no such index for inner products")
    if hasattr(inner, "do_polysemous_training"):
        # 18 of 19 s for 10,000 vectors of width 64, minutes for codes of 10 bits, and for a search not used here.
        inner.do_polysemous_training = False
    return index


def _num_training(factory: str) -> int:
    return TRAINING_PER_CENTROID * max([BYTE, *_centroids(factory)])


def _centroids(factory: str) -> list[int]:
    """How many centroids each k-means of the training looks for, where the string says so: IVF1024, PQ8x10."""
    cells = [int(number) * UNITS[unit] for number, unit in re.findall(r"IVF(\d+)([kM]?)", factory)]
    return cells + [1 << int(bits) for bits in re.findall(r"\dx(\d{1,2})", factory)]
