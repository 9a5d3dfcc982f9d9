"""Adapters made of the teacher's own transformer blocks: what the store keeps is what those blocks read.

    image  patches [B, T, D] -> CLS before them, + position -> blocks -> CLS left out -> [B, T, D]
    text   words   [B, T, D] -> + position, + type, norm    -> blocks                 -> [B, T, D]
    audio  frames  [B, T, C] -> norm, projected, + convolved position, norm -> blocks -> [B, T, D]

Everything from the stored values on is a copy that is trained; relative positions are among a block's weights. With
all blocks the tokens are the teacher's last hidden states, before any norm that follows the last. A selection
of them is a shallower student that starts from the teacher's weights (Sanh et al. 2019, DistilBERT, arXiv
1910.01108), for data2vec's models of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from contract import config
from contract.errors import ConfigError
from encoders import ENCODERS, pretrained, tokens, waveforms
from trainer import source
from trainer.ranges import Count, Share
from trainer.students.layers import Recomputed

if TYPE_CHECKING:
    from trainer.students.adapters import InputShape

# By a configuration's name for it, what is drawn at random in training.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "feat_proj_dropout",
)


@dataclass(frozen=True, kw_only=True)
class TeacherBlocks:
    """The teacher's blocks of these numbers, counted from 0, or `depth` of them, evenly spread.

    The student's width is theirs: nothing is projected.
    """

    kind: Literal["teacher_blocks"] = "teacher_blocks"
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    depth: Count | None = None
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        """Refuse both ways of choosing at once, or none, and blocks in an order that is not the teacher's."""
        if (self.layers is None) == (self.depth is None):
            raise ValueError("teacher_blocks: give either `layers`, such as [0, 2, 4], or `depth`, how many")
        if self.layers is not None and (not self.layers or any(b <= a for a, b in pairwise(self.layers))):
            raise ValueError(f"layers {list(self.layers)}: name some of the teacher's blocks, in ascending order")

    @property
    def token_dropout(self) -> float:
        """None is dropped: the blocks know each token's place."""
        return 0.0

    def require_width(self, width: int) -> None:
        """Only the teacher's will do, which the store tells."""

    def build(self, shape: InputShape, width: int) -> TeacherAdapter:
        """The adapter, with the teacher's weights if the run is a new one."""
        if shape.origin is None:
            raise ConfigError("teacher_blocks: of the stored values it is not known which encoder made them")
        fieldset, field, name = shape.origin.fieldset, shape.origin.field, shape.origin.name
        setting = f"student.adapters.{fieldset.modality}"
        if shape.is_new:
            encoder: Any = source.encoder(fieldset, name, f"{setting} can't take its blocks")
        else:
            encoder = config.parse(fieldset.provenance["encoder"], ENCODERS[fieldset.modality], source=name)
        if encoder.kind not in FAMILIES:
            raise ConfigError(
                f"{setting}: teacher_blocks are those of {', '.join(FAMILIES)}, and {name} was filled by one "
                f"of kind {encoder.kind}; choose `kind: transformer`"
            )
        wanted, family = FAMILIES[encoder.kind]
        if field != wanted:
            raise ConfigError(
                f"{setting}: the teacher's blocks read {wanted}, and the recipe's inputs.{fieldset.modality} is "
                f"{field}; choose {wanted}"
            )
        if encoder._config.hidden_size != width:
            raise ConfigError(
                f"{setting}: the teacher's blocks are {encoder._config.hidden_size} wide and nothing is projected: "
                f"set student.width to that, instead of {width}"
            )
        layers = self._chosen(encoder._config.num_hidden_layers, setting)
        model = _model(encoder, self.dropout, with_weights=shape.is_new)
        return TeacherAdapter(shape.width, family(model, layers, fieldset.field(field).about))

    def _chosen(self, num_blocks: int, setting: str) -> list[int]:
        highest = self.layers[-1] + 1 if self.layers is not None else self.depth or 0
        if highest > num_blocks:
            raise ConfigError(f"{setting}: block {highest - 1} is asked for, and the teacher has {num_blocks}")
        if self.layers is not None:
            return list(self.layers)
        return torch.linspace(0, num_blocks - 1, self.depth or 0, dtype=torch.float64).round().int().tolist()


class TeacherAdapter(nn.Module):
    """Stored tokens through the teacher's blocks."""

    def __init__(self, width: int, family: nn.Module) -> None:
        super().__init__()
        self.unseen = nn.Parameter(torch.zeros(width))  # stands where a token is hidden
        self.family = family

    def forward(
        self, tokens: Tensor, mask: Tensor | None, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Float [B, T, D] and bool [B, T] -> float [B, T, W] and bool [B, T]."""
        x = tokens.float()
        if masked is not None:
            x = torch.where(masked[..., None], self.unseen, x)
        return self.family(x, mask), mask

    def measure(self, tokens: Tensor, mask: Tensor | None) -> None:
        """Nothing is standardised: the blocks were trained on the values as they are."""


class TeacherBlock(Recomputed):
    """One block of the teacher, whose attention is `told` something beside the tokens."""

    def __init__(self, block: nn.Module, told: str, **arguments: Any) -> None:
        super().__init__()
        self.block, self._told, self._arguments = block, told, arguments

    def mixed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """What the block does; `mask` is what its attention takes."""
        found = self.block(tokens, **{self._told: mask}, **self._arguments)
        mixed: Tensor = found[0] if isinstance(found, tuple) else found
        return mixed


class ImageBlocks(nn.Module):
    """Of a data2vec-vision model."""

    def __init__(self, model: Any, layers: Sequence[int], about: dict[str, Any]) -> None:
        super().__init__()
        embeddings, encoder = model.embeddings, model.encoder
        self.resolution = tuple(n * size for n, size in zip(about["grid"], about["patch_size"], strict=True))
        self.cls_token = embeddings.cls_token
        self.position = None
        if embeddings.position_embeddings is not None:
            tokens = embeddings.cls_token.new_empty(1, 1 + about["grid"][0] * about["grid"][1], 0)
            self.position = nn.Parameter(embeddings.interpolate_pos_encoding(tokens, *self.resolution).clone())
        self.dropout = embeddings.dropout
        self.relative = None
        if encoder.has_relative_position_bias:
            self.relative = RelativePositions(encoder.relative_position_bias, about["grid"])
        for number in layers:
            attention = encoder.layer[number].attention.attention
            if attention.has_relative_position_bias:
                attention.relative_position_bias = RelativePositions(
                    attention.relative_position_bias, about["grid"]
                )
        self.blocks = nn.ModuleList(
            TeacherBlock(encoder.layer[n], "relative_position_bias", resolution=self.resolution) for n in layers
        )

    def forward(self, patches: Tensor, mask: Tensor | None) -> Tensor:
        """Float [B, T, D] of a whole grid -> [B, T, D]."""
        x: Tensor = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        x = self.dropout(x if self.position is None else x + self.position)
        for block in self.blocks:
            x = block(x, None if self.relative is None else self.relative())
        return x[:, 1:]


class RelativePositions(nn.Module):
    """What attention adds to the scores of two places, by how far they lie apart, in a data2vec-vision model.

    The model's own module interpolates its table to the size that it has, in each pass, and keeps the index in a
    cache, where what was made in inference mode can't be trained with.
    """

    index: Tensor

    def __init__(self, relative: Any, grid: Sequence[int]) -> None:
        super().__init__()
        if tuple(relative.window_size) != tuple(grid):
            raise ConfigError(
                f"teacher_blocks: the teacher knows relative positions of {list(relative.window_size)} patches; "
                f"the store has {list(grid)}; precompute at the model's own size"
            )
        self.table = relative.relative_position_bias_table
        self.register_buffer("index", relative.generate_relative_position_index(tuple(grid)).clone())

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Float [1, H, 1 + T, 1 + T], CLS first."""
        added: Tensor = self.table[self.index].permute(2, 0, 1)[None].contiguous()
        return added


class TextBlocks(nn.Module):
    """Of a data2vec-text model."""

    def __init__(self, model: Any, layers: Sequence[int], about: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = model.embeddings
        del self.embeddings.word_embeddings  # the store has what it gives
        self.blocks = nn.ModuleList(TeacherBlock(model.encoder.layer[n], "attention_mask") for n in layers)

    def forward(self, words: Tensor, mask: Tensor | None) -> Tensor:
        """Float [B, T, D] and bool [B, T] -> [B, T, D]."""
        x: Tensor = self.embeddings(inputs_embeds=words)
        for block in self.blocks:
            x = block(x, None if mask is None else mask[:, None, None, :])
        return x


class AudioBlocks(nn.Module):
    """Of a data2vec-audio model."""

    def __init__(self, model: Any, layers: Sequence[int], about: dict[str, Any]) -> None:
        super().__init__()
        self.project, self.position = model.feature_projection, model.encoder.pos_conv_embed
        self.norm, self.dropout = model.encoder.layer_norm, model.encoder.dropout
        self.blocks = nn.ModuleList(TeacherBlock(model.encoder.layers[n], "attention_mask") for n in layers)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Float [B, T, C] and bool [B, T] -> [B, T, D]."""
        real = None if mask is None else mask[..., None]
        x: Tensor = self._silenced(self.project(frames)[0], real)
        x = self.dropout(self.norm(x + self._position(x, real)))
        for block in self.blocks:
            x = block(x, None if mask is None else mask[:, None, None, :])
        return x

    def _position(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Each convolution would carry what it makes of padding back into the last frames."""
        # In float32: on a CPU oneDNN's grouped convolutions are wrong in half precision for some shapes.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            for layer in self.position.layers:
                x = self._silenced(layer(x.transpose(1, 2)).transpose(1, 2), real)
        return x

    def _silenced(self, x: Tensor, real: Tensor | None) -> Tensor:
        return x if real is None else x.where(real, 0.0)


# By an encoder's kind, the field that its blocks read, and the blocks.
FAMILIES: dict[str, tuple[str, Any]] = {
    "data2vec_image": ("patch_embeddings", ImageBlocks),
    "data2vec_text": ("token_embeddings", TextBlocks),
    "data2vec_audio": ("patch_embeddings", AudioBlocks),
}


def _model(encoder: Any, dropout: float, *, with_weights: bool) -> Any:
    """The encoder's model, trainable; without weights, those of a checkpoint take their place."""
    import transformers

    settings = deepcopy(encoder._config)
    for name in DROPOUTS:
        if hasattr(settings, name):
            setattr(settings, name, dropout)
    if hasattr(settings, "drop_path_rate"):
        settings.drop_path_rate = 0.0
    if not with_weights:
        return transformers.AutoModel.from_config(settings, attn_implementation="sdpa").float()
    model = pretrained.load(
        "AutoModel",
        encoder._folder,
        encoder.model,
        unused=(*tokens.UNUSED, *waveforms.UNUSED),
        config=settings,
        attn_implementation="sdpa",
    )
    return model.train().requires_grad_(True)
