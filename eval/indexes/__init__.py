"""Approximate and exhaustive search structures: a file each, which says what FAISS is to build for a gallery."""

from typing import Annotated, TypeAlias

from pydantic import Field

from eval.indexes.factory import Factory
from eval.indexes.flat import Flat
from eval.indexes.hnsw import HNSW
from eval.indexes.ivf import IVF
from eval.indexes.ivfpq import IVFPQ
from eval.indexes.opq import OPQ

__all__ = ["HNSW", "IVF", "IVFPQ", "KINDS", "OPQ", "Factory", "Flat", "Index", "named"]

# A new index is a file beside this one and its class in both lines; `KINDS` are those that size themselves.
Index: TypeAlias = Annotated[Flat | IVF | HNSW | IVFPQ | OPQ | Factory, Field(discriminator="kind")]
KINDS: dict[str, Flat | IVF | HNSW | IVFPQ | OPQ] = {
    one.kind: one for one in (Flat(), IVF(), HNSW(), IVFPQ(), OPQ())
}


def named(text: str) -> Index:
    """The index of that kind, or the one that FAISS's factory makes of the text."""
    return KINDS[text] if text in KINDS else Factory(string=text)
