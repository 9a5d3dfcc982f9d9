"""FAISS itself: how it is imported, what its errors and warnings mean, and what of it runs on a GPU."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from contract.errors import MissingExtraError

METRIC = "inner product of unit vectors"


def library() -> Any:
    """The module `faiss`."""
    try:
        import faiss
    except (ImportError, RuntimeError) as error:  # RuntimeError where CUDA's libraries are not with it
        raise MissingExtraError(f"FAISS can't be imported: {error}") from error
    return faiss


def reason(error: Exception) -> str:
    """What FAISS has to say, without the C++ signature, file and assertion around it."""
    text = re.sub(r"^Error in .*? at \S+:\d+: ", "", " ".join(str(error).split()))
    found = re.fullmatch(r"Error: '(.*?)' failed:? ?(.*)", text)
    if found is None:
        return text
    assertion, words = found.groups()
    return words or f"it wants {assertion}"


@cache
def resources() -> Any:
    """FAISS's working memory on the GPU, 1.5 GB of it: one for all that is done there."""
    return library().StandardGpuResources()


@contextmanager
def outspoken(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say what FAISS prints meanwhile, once each and with the `name` of the index: OPQ prints a line 400 times."""
    with tempfile.TemporaryFile() as caught:
        before = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            caught.seek(0)
            for line in dict.fromkeys(caught.read().decode(errors="replace").splitlines()):
                say(f"note: {name}: FAISS says: {line.removeprefix('WARNING ')}")


def core(index: Any) -> Any:
    """What lies within the rotations, and under the exact scores, of an index on the processor."""
    faiss = library()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return core(index.index)
    return core(index.base_index) if isinstance(index, faiss.IndexRefine) else index


def placed(index: Any, name: str, say: Callable[[str], None]) -> Any:
    """The index on the first GPU, where there is one and FAISS has such an index for it."""
    faiss = library()
    if faiss.get_num_gpus() == 0:
        return index
    try:
        return faiss.index_cpu_to_gpu(resources(), 0, index)
    except RuntimeError as error:
        say(f"note: {name}: it is searched on the processor, FAISS can't place it on the GPU: {reason(error)}")
        return index


def is_on_gpu(index: Any) -> bool:
    """Whether an index was placed on a GPU."""
    return type(core(index)).__name__.startswith("Gpu")
