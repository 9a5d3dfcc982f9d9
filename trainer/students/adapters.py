"""Adapters: from one modality's stored tokens to tokens of the student's width.

    tokens [B, T, D] -> standardised -> projected to W -> + position -> MLP, or transformer blocks -> [B, T, W]

Everything up to here belongs to one modality; what follows, the trunk, is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from contract.errors import ConfigError
from contract.schema import FieldSet
from trainer.batch import Tokens
from trainer.ranges import Count, Positive, Share
from trainer.students.layers import Block, Recomputed, head_width, real_tokens
from trainer.students.teacher_blocks import TeacherAdapter, TeacherBlocks


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The `field` of a FieldSet that is read; `name` is for errors."""

    fieldset: FieldSet
    field: str
    name: str


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """What a store keeps of one modality: `num_tokens` T rows of `width` D per item.

    `origin` says what made it; `is_new` that no checkpoint's weights will take the place of a student's first ones.
    """

    num_tokens: int
    width: int
    origin: Origin | None = None
    is_new: bool = True


@dataclass(frozen=True, kw_only=True)
class MlpAdapter:
    """Each token on its own through a two-layer residual MLP.

    `input_dropout` is of the standardised channels, before they are projected; `token_dropout` of whole tokens.
    """

    kind: Literal["mlp"] = "mlp"
    mlp_ratio: Positive = 2.0
    dropout: Share = 0.1
    input_dropout: Share = 0.0
    token_dropout: Share = 0.0

    def require_width(self, width: int) -> None:
        """Any width will do."""

    def build(self, shape: InputShape, width: int) -> Adapter:
        """The adapter, randomly initialised."""
        hidden = int(width * self.mlp_ratio)
        layers = nn.ModuleList([TokenMlp(width, hidden, self.dropout)])
        return Adapter(shape, width, layers, self.input_dropout, self.token_dropout)


@dataclass(frozen=True, kw_only=True)
class TransformerAdapter:
    """`depth` transformer blocks over the modality's tokens; `input_dropout` and `token_dropout` as of the MLP."""

    kind: Literal["transformer"] = "transformer"
    depth: Count = 1
    num_heads: Count = 4
    mlp_ratio: Positive = 2.0
    dropout: Share = 0.1
    input_dropout: Share = 0.0
    token_dropout: Share = 0.0

    def require_width(self, width: int) -> None:
        """ValueError if the heads can't share the width."""
        head_width(width, self.num_heads)

    def build(self, shape: InputShape, width: int) -> Adapter:
        """The adapter, randomly initialised."""
        blocks = (Block(width, self.num_heads, self.mlp_ratio, self.dropout) for _ in range(self.depth))
        return Adapter(shape, width, nn.ModuleList(blocks), self.input_dropout, self.token_dropout)


AdapterConfig = Annotated[MlpAdapter | TransformerAdapter | TeacherBlocks, Field(discriminator="kind")]


class Adapters(nn.Module):
    """One adapter for each modality that the store has."""

    def __init__(self, configs: Mapping[str, AdapterConfig], shapes: Mapping[str, InputShape], width: int) -> None:
        super().__init__()
        lacking = [modality for modality in shapes if modality not in configs]
        if lacking:
            raise ConfigError(
                f"student.adapters has no entry for {', '.join(lacking)}, which the streams have; "
                f"there are: {', '.join(configs)}"
            )
        self.by_modality = nn.ModuleDict(
            {modality: configs[modality].build(shape, width) for modality, shape in shapes.items()}
        )

    def forward(self, modality: str, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """The modality's tokens -> float [B, T', W] and bool [B, T'], None when all are real."""
        adapted: tuple[Tensor, Tensor | None] = self.by_modality[modality](
            tokens.values, real_tokens(tokens.length, tokens.values.shape[1]), tokens.masked
        )
        return adapted

    def measure(self, modality: str, tokens: Tokens) -> None:
        """Take the modality's standardisation from these tokens."""
        adapter = self.by_modality[modality]
        assert isinstance(adapter, Adapter | TeacherAdapter)
        adapter.measure(tokens.values, real_tokens(tokens.length, tokens.values.shape[1]))


class Adapter(nn.Module):
    """Standardise, project, add the position, then the layers."""

    def __init__(
        self, shape: InputShape, width: int, layers: nn.ModuleList, input_dropout: float, token_dropout: float
    ) -> None:
        super().__init__()
        self.token_dropout = token_dropout
        self.standardise = Standardise(shape.width)
        self.dropout = nn.Dropout(input_dropout)
        self.project = nn.Linear(shape.width, width)
        self.position = nn.Parameter(torch.randn(shape.num_tokens, width) * 0.02)
        self.unseen = nn.Parameter(torch.zeros(width))  # stands where a token is hidden, as BERT's [MASK] does
        self.layers = layers

    def forward(
        self, tokens: Tensor, mask: Tensor | None, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Float [B, T, D] and bool [B, T] -> float [B, T', W] and bool [B, T']; T' < T under token dropout.

        None is dropped where tokens are `masked`: they are to be told by their neighbours.
        """
        x = self.project(self.dropout(self.standardise(tokens)))
        if masked is not None:
            x = torch.where(masked[..., None], self.unseen.to(x.dtype), x)
        x = x + self.position[: tokens.shape[1]]
        if self.training and self.token_dropout > 0 and masked is None:
            x, mask = thinned(x, mask, self.token_dropout)
        for layer in self.layers:
            x = layer(x, mask)
        return x, mask

    def measure(self, tokens: Tensor, mask: Tensor | None) -> None:
        """Take the standardisation from these tokens: float [B, T, D] and bool [B, T]."""
        self.standardise.measure(tokens, mask)


class Standardise(nn.Module):
    """(x - mean) / deviation per channel, with constants measured once on training tokens.

    Teachers differ in scale by orders of magnitude, and some have a few huge channels; a layer norm would
    let those drown the others, and would lose each token's norm.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    @torch.no_grad()
    def measure(self, tokens: Tensor, mask: Tensor | None) -> None:
        """Take the constants from these tokens: float [B, T, D] and bool [B, T]."""
        rows = tokens.flatten(0, 1) if mask is None else tokens[mask]
        deviation, mean = torch.std_mean(rows.float(), dim=0)
        self.mean.copy_(mean)
        # A channel that never moves is switched off, and one that hardly moves is not blown up to its noise.
        live = deviation > 0
        floor = 0.01 * deviation.where(live, torch.nan).nanmedian()
        self.deviation.copy_(deviation.clamp(min=floor).where(live, torch.inf))

    def forward(self, tokens: Tensor) -> Tensor:
        """Float [B, T, D] -> float [B, T, D]."""
        return (tokens.float() - self.mean) / self.deviation


class TokenMlp(Recomputed):
    """x <- x + mlp(norm(x)) on each token."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def mixed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Each token on its own, so that the mask changes nothing."""
        mixed: Tensor = self.layers(tokens)
        return tokens + mixed


def thinned(tokens: Tensor, mask: Tensor | None, fraction: float) -> tuple[Tensor, Tensor | None]:
    """Drop the same random `fraction` of every row's places, in the manner of masked pre-training.

    Besides regularising it saves the dropped tokens' work. Each row draws places of its own; padding is
    drawn last, so that a short row keeps its tokens as long as there is room.
    """
    num_rows, num_tokens, width = tokens.shape
    num_kept = max(1, round(num_tokens * (1 - fraction)))
    order = torch.rand(num_rows, num_tokens, device=tokens.device)
    if mask is not None:
        order = order + (~mask).to(order.dtype)
    kept = order.argsort(1)[:, :num_kept]
    rows = tokens.gather(1, kept[..., None].expand(-1, -1, width))
    return rows, None if mask is None else mask.gather(1, kept)
