"""Randomness that can be named: which item, which of its views, under which seed."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, item_id: str, view: int) -> np.random.Generator:
    """The generator of an item's view number `view`, the same in every process and on every machine."""
    # Neither Python's hash(), salted per process, nor NumPy's default bit generator, which may change.
    digest = hashlib.sha256(f"{seed}/{view}/{item_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
