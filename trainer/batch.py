"""What an objective sees: a batch, and the student's passes over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn


class Tokens(NamedTuple):
    """`values` float [B, T, D], and how many of each row's T tokens are real: int32 [B], None when all are."""

    values: Tensor
    length: Tensor | None = None

    def to(self, device: str) -> Tokens:
        """The same on another device."""
        return Tokens(self.values.to(device), None if self.length is None else self.length.to(device))


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

    def to(self, device: str) -> Batch:
        """The same on another device."""
        return Batch(
            pair=self.pair,
            inputs={modality: tokens.to(device) for modality, tokens in self.inputs.items()},
            targets={name: target.to(device) for name, target in self.targets.items()},
        )


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
