"""Randomness that can be named: which item, which of its views, under which seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt


class Augmentation(Protocol):
    """How the views of a modality are drawn."""

    PARAMETERS: ClassVar[tuple[str, ...]]

    @property
    def draw(self) -> Callable[..., npt.NDArray[np.float32]]:
        """(generator, *extent of the input) -> the parameters of one view, float32 [P]."""


def drawn(
    augmentation: Augmentation, seed: int, item_id: str, num_views: int, *extent: float
) -> npt.NDArray[np.float32]:
    """The parameters of an item's views, float32 [1 + num_views, P]: zeros first, for the evaluation view."""
    parameters = np.zeros((1 + num_views, len(augmentation.PARAMETERS)), np.float32)
    for view in range(1, 1 + num_views):
        parameters[view] = augmentation.draw(generator(seed, item_id, view), *extent)
    return parameters


def generator(seed: int, item_id: str, view: int) -> np.random.Generator:
    """The generator of an item's view number `view`, the same in every process and on every machine."""
    # Neither Python's hash(), salted per process, nor NumPy's default bit generator, which may change.
    digest = hashlib.sha256(f"{seed}/{view}/{item_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
