"""Word-region contrast: each word of a caption looks for its regions, and its image must be told from the others.

    a_wr = softmax_r( rho_1 cos(w, r) ),   c_w = sum_r a_wr r
    S(x, s) = 1/rho_2 log sum_w exp( rho_2 cos(c_w, w) )
    L = 1/2B sum_i [ - log softmax_j( S(x_i, s_j) / t )_i  - log softmax_j( S(x_j, s_i) / t )_i ]

w the student's tokens of the sentence s, r those of the image x; what is padding takes no part. Zhang et al. 2021
(XMC-GAN, arXiv 2101.04702), whose score is that of AttnGAN (Xu et al. 2018, arXiv 1711.10485).

Memory: attention of all words to all regions, float32 [B, B, T, R], would take 0.5 GB at B = 256, T = 32, R = 64,
and again in each of the steps behind it. It is made for few images at a time, and again in the backward pass; what
stays are tokens and [B, B]. |c_w| comes from the products of an image's regions, so that no context is ever held.
Where a batch lacks either modality there is no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Positive
from trainer.students.layers import unit

# Values of an array over pairs, words and regions that are in memory at once: 64 MB, a few times.
MOST_AT_ONCE = 1 << 24
# Of a context that is shorter, the direction means nothing.
SHORTEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class WordRegion(ObjectiveConfig):
    """Sharpness `rho_1` of the attention and `rho_2` of the sum over words, and the temperature t."""

    kind: Literal["word_region"] = "word_region"
    words: str = "text"
    regions: str = "image"
    rho_1: Positive = 4.0
    rho_2: Positive = 5.0
    temperature: Positive = 0.1

    def build(self, context: Context) -> WordRegionLoss:
        """The objective as a module."""
        for modality in (self.words, self.regions):
            if modality not in context.modalities:
                raise ConfigError(f"objective {self.kind} compares {modality} tokens, and no stream has any")
        return WordRegionLoss(self)


class WordRegionLoss(Loss):
    """One part per direction."""

    def __init__(self, config: WordRegion) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Tokens [B, T, W] and [B, R, W] and their masks -> float32 scalars."""
        words, regions = self.config.words, self.config.regions
        if not {words, regions} <= set(batch.pair):
            return {}
        named = [forward.main[f"{side}/{name}"] for side in (words, regions) for name in ("tokens", "mask")]
        with torch.autocast(named[0].device.type, enabled=False):
            scores = self.scores(*named) / self.config.temperature
            own = torch.arange(len(scores), device=scores.device)
            return {
                f"{regions}-to-{words}": F.cross_entropy(scores, own) / 2,
                f"{words}-to-{regions}": F.cross_entropy(scores.T, own) / 2,
            }

    def scores(self, words: Tensor, real_words: Tensor, regions: Tensor, real_regions: Tensor) -> Tensor:
        """S of images with sentences, float32 [I, S], of tokens [S, T, W] and [I, R, W] and bool [S, T], [I, R]."""
        regions, flat = regions.float(), unit(words[real_words])  # [N, W]: nothing is computed of padding
        num_images = max(1, MOST_AT_ONCE // max(1, len(flat) * regions.shape[1]))
        blocks = zip(torch.split(regions, num_images), torch.split(real_regions, num_images), strict=True)
        found = [
            checkpoint(self._block, flat, real_words, *block, use_reentrant=False, preserve_rng_state=False)
            for block in blocks
        ]
        return torch.cat(found)

    def _block(self, flat: Tensor, real_words: Tensor, regions: Tensor, real_regions: Tensor) -> Tensor:
        """The same of few images and the N real words, which have unit length."""
        lengths = regions.norm(dim=-1).clamp(min=SHORTEST).where(real_regions, 0.0)  # [I, R]
        directions = unit(regions)
        cosines = directions @ flat.T  # [I, R, N]
        attention = (self.config.rho_1 * cosines).masked_fill(~real_regions[..., None], -torch.inf).softmax(1)
        # In units of an image's longest region: squares of huge tokens stay finite, and a cosine has no scale.
        weights = attention * (lengths / lengths.amax(1, keepdim=True))[..., None]
        products = directions @ directions.transpose(1, 2)  # [I, R, R]
        squares = (weights * (products @ weights)).sum(1)  # |c_w|^2, [I, N]
        found = (weights * cosines).sum(1) / squares.clamp(min=SHORTEST**2).sqrt()
        scores = found.new_full((len(regions), *real_words.shape), -torch.inf)
        scores[:, real_words] = self.config.rho_2 * found
        return torch.logsumexp(scores, -1) / self.config.rho_2
