"""Approximate and exhaustive search structures: a file each, with its configuration and how FAISS builds it."""

from typing import TypeAlias

from eval.indexes.flat import Flat

# A new index is a file beside this one and its class here: Flat | Other.
Index: TypeAlias = Flat
