"""Caption generation: an image or a sound becomes a few category words, which a decoder goes on from.

    L_gen = - 1/N sum_i sum_t log p( w_i,t+1 | e_i1 .. e_iK, w_i1 .. w_it )

e_i the category words of each modality beside the text (category_words.py: Gumbel-softmax over the vocabulary of
the training captions, mixtures of rows of the frozen table of their vectors), w_i the caption's words and behind
them the end, N how many are told in the batch; p is the decoder's (text_decoder.py), under teacher forcing. Lin et
al. 2021 (Vx2Text, arXiv 2101.12059).

Deviations: the paper's classifiers are trained ones of fixed categories, of which K are drawn from one distribution
without replacement, and its decoder is T5. Here K classifications are learnt with the captions, over all words that
captions have, and one word is drawn of each; the decoder is small and learns from nothing. A special token is never
a category and is not told; words that are not in the vocabulary are read but not told. Where a batch has no text,
or nothing beside it, there is no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.objectives.category_words import CategoryWords, Gumbel
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.objectives.text_decoder import Decoder
from trainer.ranges import Count

TEXT, SOUND = "text", "audio"
# The id of words that the vocabulary lacks.
UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class Caption(ObjectiveConfig):
    """`num_words` K category words of each modality that is no text; without `sound` none of a sound."""

    kind: Literal["caption"] = "caption"
    num_words: Count = 8
    sound: bool = True
    gumbel: Gumbel = field(default_factory=Gumbel)
    decoder: Decoder = field(default_factory=Decoder)

    @property
    def reads_words(self) -> bool:
        """They are what is told."""
        return True

    def build(self, context: Context) -> CaptionLoss:
        """The objective as a module; it owns the classifiers and the decoder."""
        modalities = [m for m in context.modalities if m != TEXT and (self.sound or m != SOUND)]
        if not context.vocabulary or not modalities:
            raise ConfigError(
                f"objective {self.kind} captions {' and '.join(modalities) or 'nothing'} with "
                f"{len(context.vocabulary)} words: give it a stream with captions, such as image-text"
            )
        return CaptionLoss(self, context, modalities)


class CaptionLoss(Loss):
    """One part."""

    def __init__(self, config: Caption, context: Context, modalities: Sequence[str]) -> None:
        super().__init__()
        width, num_words = config.decoder.width, config.num_words
        banned = torch.zeros(len(context.vocabulary), dtype=torch.bool)
        banned[[UNKNOWN, *context.special]] = True
        self.categories = CategoryWords(config.gumbel, modalities, context.embedding_dim, width, num_words, banned)
        # What tells a modality's words from another's, and from those of the caption.
        self.positions = nn.ParameterDict({m: nn.Parameter(torch.randn(num_words, width) / 50) for m in modalities})
        self.decoder = config.decoder.build(context.word_vectors(), context.num_tokens[TEXT])

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Features [B, D] of what is no text, ids int64 [B, T] of the caption -> float32 scalar."""
        read = self.read(batch.inputs)
        if TEXT not in batch.pair or not read:
            return {}
        before = self.before({modality: forward.main[f"{modality}/features"] for modality in read})
        return {"words": self.decoder.loss(before, self._plain(batch.words[TEXT]), ~self.categories.banned)}

    def stepped(self, student: nn.Module) -> None:
        """Anneal."""
        self.categories.stepped()

    def read(self, given: Iterable[str]) -> list[str]:
        """Those modalities of what is given that a caption is made of."""
        return [modality for modality in self.categories.hidden if modality in given]

    def before(self, features: Mapping[str, Tensor]) -> Tensor:
        """What the decoder reads before the caption, float32 [B, K M, W], of M modalities' features [B, D]."""
        with torch.autocast(self.decoder.table.device.type, enabled=False):
            mixtures = {m: self.categories(m, values) @ self.decoder.table for m, values in features.items()}
            return torch.cat([self.decoder.read(one) + self.positions[m] for m, one in mixtures.items()], dim=1)

    def _plain(self, words: Tensor) -> Tensor:
        """Ids [B, T] -> the same without special tokens, -1 past the end."""
        is_special = self.categories.banned[words.clamp(min=0)] & (words != UNKNOWN)
        words = words.masked_fill(is_special, -1)
        return words.gather(1, (words < 0).int().argsort(dim=1, stable=True))
