"""The encoder at work: one forward pass a batch, or several when the device has no room for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import DataError
from encoders import FrozenModel
from pipeline.decoding import Decoded
from pipeline.plan import PARAMETERS

Arrays = dict[str, npt.NDArray[Any]]

# How torch says it where it has no exception of its own: on a CPU, on Apple's GPUs, from inside cuBLAS and cuDNN.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


class Forward:
    """A built encoder that halves its batches from where memory ran out on, says so once and remembers it.

    `halved_to` is how many views go through at a time since then, 0 before.
    """

    def __init__(self, build: Callable[[], FrozenModel], key: str) -> None:
        self.halved_to = 0
        self._build, self._key = build, key
        self._model: FrozenModel | None = build()
        self._notes: list[str] = []

    @property
    def model(self) -> FrozenModel:
        """The encoder, loaded again if it was let go of."""
        if self._model is None:
            self._model = self._build()
        return self._model

    def release(self) -> None:
        """Let go of the weights until they are needed again, so that there is room for others."""
        self._model = None
        _empty_cache()

    def __call__(self, decoded: Decoded) -> Arrays:
        """What the encoder says of the views of a batch, [len(views), ...]; {} without any."""
        if not decoded.views:
            return {}
        return self.of(decoded.views) | {PARAMETERS: decoded.parameters}

    def of(self, views: Sequence[Any]) -> Arrays:
        """The same of views alone."""
        size = most = min(self.halved_to or len(views), len(views))
        while (parts := self._try(views, size)) is None:
            if size == 1:
                raise DataError(
                    f"{self._key}: memory ran out on a single view; choose a smaller model or a lower `precision`, "
                    "or run it where there is more memory"
                )
            size //= 2
        if size < most:
            self.halved_to = size
            self._notes.append(
                f"{self._key}: memory ran out on {most} views; from here on {size} at a time go through the encoder"
            )
        return parts[0] if len(parts) == 1 else _joined(parts)

    def take_notes(self) -> tuple[str, ...]:
        """What is to be said, once."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def _try(self, views: Sequence[Any], size: int) -> list[Arrays] | None:
        """The outputs part by part; None if memory ran out, with nothing of the attempt left on the device."""
        model = self.model
        try:
            return [model(views[start : start + size]) for start in range(0, len(views), size)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        _empty_cache()
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch would help."""
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _empty_cache() -> None:
    import torch

    torch.cuda.empty_cache()


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
