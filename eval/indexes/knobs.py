"""What may be set of a FAISS index when it is searched: recall against time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.indexes.library import is_on_gpu, library

Settings = dict[str, int]

# A graph that is walked with more candidates is slower than a product with everything.
MOST_CANDIDATES = 4096
MOST_REFINED = 64
# What FAISS's kernels on a GPU take.
MOST_CELLS = 2048


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A setting from 1 to `most`: the more, the slower, and the better the recall."""

    name: str
    most: int


def knobs(index: Any) -> tuple[Knob, ...]:
    """Those of an index on the processor, named as in FAISS's ParameterSpace, that which costs most first."""
    faiss = library()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return knobs(index.index)
    if isinstance(index, faiss.IndexRefine):
        return (*knobs(index.base_index), Knob(name="k_factor_rf", most=MOST_REFINED))
    if isinstance(index, faiss.IndexHNSW):
        return (Knob(name="efSearch", most=min(index.ntotal, MOST_CANDIDATES)),)
    if isinstance(index, faiss.IndexIVF):
        coarse = (Knob(name=f"quantizer_{knob.name}", most=knob.most) for knob in knobs(index.quantizer))
        return (Knob(name="nprobe", most=min(index.nlist, MOST_CELLS)), *coarse)
    return ()


def put(index: Any, settings: Mapping[str, int]) -> None:
    """Search with these settings from now on, on the processor or the GPU."""
    faiss = library()
    space = faiss.GpuParameterSpace() if is_on_gpu(index) else faiss.ParameterSpace()
    for name, value in settings.items():
        space.set_index_parameter(index, name, value)
