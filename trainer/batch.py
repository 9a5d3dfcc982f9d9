"""A batch: as it is read, as an objective sees it, and the student's passes over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn

from trainer.stored import Arrays, StoredField


class Tokens(NamedTuple):
    """`values` float [B, T, D], and how many of each row's T tokens are real: int32 [B], None when all are."""

    values: Tensor
    length: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class StoredTokens:
    """One modality's tokens as they are stored, on the host."""

    values: StoredField
    arrays: Arrays
    length: Tensor | None

    def to(self, device: str) -> Tokens:
        """The tokens on a device, cut to the longest row of them, and only then decoded."""
        arrays = _moved(self.arrays, device)
        if self.length is not None:
            longest = max(1, int(self.length.max())) if len(self.length) else 1
            arrays = {name: array[:, :longest] for name, array in arrays.items()}
        values = self.values.decode(arrays)
        if values.ndim == 2:  # one vector per item is a sequence of one token
            values = values[:, None]
        return Tokens(values, None if self.length is None else self.length.to(device, non_blocking=True))


@dataclass(frozen=True, kw_only=True)
class StoredBatch:
    """A batch as it is stored, on the host; its tensors may be buffers that another batch will be read into."""

    pair: tuple[str, str]
    inputs: Mapping[str, StoredTokens]
    targets: Mapping[str, tuple[StoredField, Arrays]]

    def to(self, device: str) -> Batch:
        """The batch on a device, decoded there."""
        return Batch(
            pair=self.pair,
            inputs={modality: tokens.to(device) for modality, tokens in self.inputs.items()},
            targets={name: field.decode(_moved(arrays, device)) for name, (field, arrays) in self.targets.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B pairs of two modalities: row i of either belongs to row i of the other; the other rows are its negatives.

    `pair` is (anchor, partner), such as ("image", "text"); `targets` are the anchor's, float [B, ...].
    """

    pair: tuple[str, str]
    inputs: Mapping[str, Tokens]
    targets: Mapping[str, Tensor]

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.inputs[self.pair[0]].values)


class Forward:
    """The passes that objectives may ask for over one batch, each computed once."""

    def __init__(self, student: nn.Module, batch: Batch) -> None:
        self._student = student
        self._batch = batch

    @cached_property
    def main(self) -> Mapping[str, Tensor]:
        """The student's named outputs for the batch: "image/embedding", "image/logits", ..."""
        named: Mapping[str, Tensor] = self._student(self._batch.inputs)
        return named

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Of the anchors and of their partners: float32 [B, D] each, unit length."""
        anchor, partner = self._batch.pair
        return self.main[f"{anchor}/embedding"], self.main[f"{partner}/embedding"]


def _moved(arrays: Mapping[str, Tensor], device: str) -> Arrays:
    return {name: array.to(device, non_blocking=True) for name, array in arrays.items()}
