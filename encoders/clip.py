"""Dual encoders of transformers, image and text in one space: CLIP, SigLIP, SigLIP 2, ALIGN, Chinese CLIP.

Each tower is an encoder of its own; both tell the `space` of their embeddings, which is the same for those, and
only those, that may be compared. Embeddings are stored as the projection gives them, not normalised:

    p(pair) = softmax(logit_scale cos + logit_bias) over the batch for CLIP, a sigmoid of it for SigLIP
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt
from pydantic import PositiveInt

from contract.encodings import Float16, FloatEncoding, Int32, Lookup, TokenEncoding
from contract.errors import ConfigError, DataError
from contract.schema import Field
from contract.views import ImageView, TextView
from encoders import image_model, image_processor, pretrained, tokens, weights
from encoders.huggingface_image import TowerOutputs
from encoders.image_model import ImageModel, described
from encoders.image_processor import Preprocessing, Processing
from encoders.outputs import Precision, autocast, take, to_numpy

if TYPE_CHECKING:
    import torch

IMAGE_NAMES = ("patch_embeddings", "patch_features", "cls", "features", "embedding")
IMAGE_DEFAULT = ("patch_embeddings", "embedding")
TEXT_DEFAULT = ("token_embeddings", "length", "embedding")


@dataclass(frozen=True, kw_only=True)
class ImageEncodings(image_model.Encodings):
    """How each field of the image tower is stored."""

    embedding: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared


@dataclass(frozen=True, kw_only=True)
class TextEncodings:
    """How each field of the text tower is stored; `lookup`: token ids, and the word-embedding table once."""

    token_embeddings: TokenEncoding = Float16()  # noqa: RUF009
    embedding: FloatEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class ClipImage:
    """The image tower of a dual encoder of transformers.

    `model` is a hub name, a local folder, or `package:NAME/FOLDER`. `take` names the fields that are stored
    (None: patch_embeddings and embedding); `features` are the pooled output before the projection. SigLIP 2 of
    variable resolution (NaFlex) is shown one size, which `preprocessing` has to say.
    """

    kind: Literal["clip_image"] = "clip_image"
    model: str
    tokens: str | None = None
    take: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    precision: Precision = "float32"
    batch_size: PositiveInt = 64
    encodings: ImageEncodings = field(default_factory=ImageEncodings)

    def view(self) -> ImageView:
        """What the model's image processor makes of an image."""
        return self._processing.view

    def fields(self) -> tuple[Field, ...]:
        """Those of `take`: `embedding` [D], and see `image_model`."""
        import torch

        model = _empty(self._config, self.model)
        with torch.device("meta"):
            outputs = _ImageOutputs(model, self.tokens, self.model, _space(self._folder, self._fingerprint))
            fields = described(outputs, self._processing, self.encodings, IMAGE_NAMES, f"model {self.model}")
        return take(fields, self.take, IMAGE_DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Hash of the model's files, preprocessing, precision."""
        return {
            "kind": self.kind,
            "weights": self._fingerprint,
            "tokens": self.tokens,
            **self._processing.recipe(),
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """One line for each override of the model's own preprocessing."""
        return self._processing.notes

    def build(self, device: str) -> ImageModel:
        """The tower with its weights, on `device`."""
        model = pretrained.load("AutoModel", self._folder, self.model)
        model.text_model = None
        return ImageModel(
            _ImageOutputs(model.to(device), self.tokens, self.model, {}),
            names=[field.name for field in self.fields()],
            processing=self._processing,
            precision=self.precision,
            device=device,
            stores_pixels=self.encodings.stores_pixels,
        )

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _fingerprint(self) -> str:
        return weights.folder_fingerprint(self._folder)

    @cached_property
    def _config(self) -> Any:
        return pretrained.read_config(self._folder, self.model)

    @cached_property
    def _processing(self) -> Processing:
        return image_processor.read(self._folder, self.preprocessing)


@dataclass(frozen=True, kw_only=True)
class ClipText:
    """The text tower of a dual encoder of transformers.

    `max_length` is None for all the positions that the model has (77 of CLIP, 64 of SigLIP). A caption is read as
    the library documents it: of SigLIP, which attends to its padding, padded to `max_length`. `take` names the
    fields that are stored (None: token_embeddings, the rows of the word-embedding table with their `length`, and
    embedding).
    """

    kind: Literal["clip_text"] = "clip_text"
    model: str
    take: tuple[str, ...] | None = None
    max_length: PositiveInt | None = None
    precision: Precision = "float32"
    batch_size: PositiveInt = 256
    encodings: TextEncodings = field(default_factory=TextEncodings)

    def view(self) -> TextView:
        """The caption."""
        return TextView()

    def fields(self) -> tuple[Field, ...]:
        """`token_embeddings` [max_length, D] and `length`, special tokens included, `embedding` [D]."""
        tokens.require_positions(self._config.text_config, self._num_tokens)
        model = _empty(self._config, self.model)
        projection = getattr(model, "text_projection", None) or model.text_model.head
        fields = (
            Field(
                name="token_embeddings",
                shape=(self._num_tokens, model.text_model.get_input_embeddings().embedding_dim),
                encoding=self.encodings.token_embeddings,
                about={"layer": "embeddings"},
            ),
            Field(name="length", shape=(), encoding=Int32()),
            Field(
                name="embedding",
                shape=(projection.out_features,),
                encoding=self.encodings.embedding,
                about=_space(self._folder, self._fingerprint),
            ),
        )
        return take(fields, self.take, TEXT_DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Hash of the model's files, length, precision."""
        return {
            "kind": self.kind,
            "weights": self._fingerprint,
            "max_length": self._num_tokens,
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """Nothing of the model's own preprocessing is overridden but its length."""
        own = self._config.text_config.max_position_embeddings
        return (f"max_length is {self.max_length}, the model's own is {own}",) if self._num_tokens != own else ()

    def tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """The tokens of each text, in the order of its rows; only the tokenizer is loaded."""
        return tokens.strings(self._tokenizer, texts, self._num_tokens)

    def text(self, strings: Sequence[str]) -> str:
        """What is written of tokens."""
        return tokens.text(self._tokenizer, strings)

    def build(self, device: str) -> _TextModel:
        """The tokenizer and the tower with its weights, on `device`."""
        model = pretrained.load("AutoModel", self._folder, self.model)
        model.vision_model = None
        return _TextModel(
            model.to(device),
            _tokenizer(self._folder, self.model),
            names=[field.name for field in self.fields()],
            num_tokens=self._num_tokens,
            precision=self.precision,
            device=device,
            stores_ids=isinstance(self.encodings.token_embeddings, Lookup),
        )

    @property
    def _num_tokens(self) -> int:
        return self.max_length or int(self._config.text_config.max_position_embeddings)

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _tokenizer(self) -> Any:
        return _tokenizer(self._folder, self.model)

    @cached_property
    def _fingerprint(self) -> str:
        return weights.folder_fingerprint(self._folder)

    @cached_property
    def _config(self) -> Any:
        return pretrained.read_config(self._folder, self.model)


class _ImageOutputs:
    """The tower's outputs and the embedding; `space` is told of the embedding."""

    def __init__(self, model: Any, tokens: str | None, name: str, space: Mapping[str, Any]) -> None:
        self._model = model
        self._tower = TowerOutputs(model, "vision_model", tokens, name)
        self._space = dict(space)

    @property
    def about(self) -> dict[str, dict[str, Any]]:
        """By field, what a reader needs beside the values."""
        return self._tower.about | {"embedding": self._space}

    @property
    def projection(self) -> torch.nn.Module | None:
        """What makes the patch embeddings by itself, if a module does."""
        return self._tower.projection

    def __call__(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Float [n, 3, h, w] -> of the named fields those that the model has."""
        if self._model.config.model_type == "siglip2":
            embedding, parts = self._of_patches(images)
        else:
            embedding = self._tower.forward(self._model.get_image_features, images)
            parts = self._tower.parts(images)
        parts["embedding"] = getattr(embedding, "pooler_output", embedding)
        return {name: value for name, value in parts.items() if name in names}

    def _of_patches(self, images: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """The embedding and the tower's parts of a model that takes patches, which its processor would cut."""
        import torch

        side = self._model.config.vision_config.patch_size
        n, _, height, width = images.shape
        if height % side or width % side:
            raise ConfigError(
                f"preprocessing.input_size: {height} x {width} is not a whole number of {side} pixel patches"
            )
        grid = (height // side, width // side)
        patches = (
            images.reshape(n, 3, grid[0], side, grid[1], side)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(n, math.prod(grid), -1)
        )
        embedding = self._tower.forward(
            self._model.get_image_features,
            patches,
            spatial_shapes=torch.tensor([grid] * n, device="cpu"),  # read as numbers; without padding, no mask
        )
        return embedding, self._tower.parts(images, grid)


class _TextModel:
    """A built text tower: captions in, float32 fields out."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        names: Sequence[str],
        num_tokens: int,
        precision: Precision,
        device: str,
        stores_ids: bool,
    ) -> None:
        self._model, self._tokenizer, self._names = model, tokenizer, names
        self._num_tokens, self._device = num_tokens, device
        self._stores_ids = stores_ids and "token_embeddings" in names
        # SigLIP was trained on captions padded to the end, and looks at the padding.
        self._padding = "max_length" if model.config.model_type.startswith("siglip") else "longest"
        self._embedding = model.text_model.get_input_embeddings()
        self._autocast = autocast(device, precision)

    def __call__(self, views: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """n captions -> the fields float32 [n, ...], tokens zero after `length` int32 [n].

        And "token_embeddings.ids" int32 [n, max_length], if ids are stored.
        """
        import torch

        batch = self._tokenizer(
            list(views),
            padding=self._padding,
            truncation=True,
            max_length=self._num_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self._device)
        given = {name: batch[name] for name in self._tokenizer.model_input_names if name in batch}
        ids, mask = _left_aligned(batch["input_ids"], batch["attention_mask"])
        outputs = {"length": mask.sum(dim=1).int()}
        with torch.inference_mode(), self._autocast:
            if "token_embeddings" in self._names:
                outputs["token_embeddings"] = tokens.padded(self._embedding(ids), mask, self._num_tokens)
            if "embedding" in self._names:
                embedding = self._model.get_text_features(**given)
                outputs["embedding"] = getattr(embedding, "pooler_output", embedding)
        fields = to_numpy(outputs, self._names)
        if self._stores_ids:
            fields["token_embeddings.ids"] = tokens.lookup_ids(ids, mask, self._num_tokens)
        return fields

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """The word-embedding table float32 [V, D], if ids are stored."""
        return {"token_embeddings.table": tokens.word_table(self._embedding)} if self._stores_ids else {}


def _empty(config: Any, model: str) -> Any:
    """The dual encoder on the meta device, without weights."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"), weights.quiet():
        made = AutoModel.from_config(config)
    if not hasattr(made, "get_image_features") or not hasattr(made, "get_text_features"):
        raise ConfigError(f"model {model} is a {type(made).__name__}, which has no towers for image and text")
    return made.eval()


def _space(folder: Path, fingerprint: str) -> dict[str, Any]:
    """What a reader needs of an embedding: the scale and bias of the logits, and whose space it is in."""
    found = weights.scalars(folder, ("logit_scale", "logit_bias", "temperature"))
    if not {"logit_scale", "temperature"} & set(found):
        raise DataError(f"{folder}: its weights have no logit_scale; give the folder of a whole dual encoder")
    # ALIGN divides by a temperature.
    scale = 1 / found["temperature"] if "temperature" in found else math.exp(found["logit_scale"])
    bias = {"logit_bias": found["logit_bias"]} if "logit_bias" in found else {}
    return {"normalised": False, "logit_scale": scale, **bias, "space": fingerprint}


def _tokenizer(folder: Path, model: str) -> Any:
    """The tokenizer as it was saved, its side of padding too, at whose end SigLIP looks."""
    from transformers import AutoTokenizer

    try:
        with weights.quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a broken file the library raises many kinds
        raise DataError(f"model {model}: its tokenizer can't be loaded: {weights.reason(error)}") from error


def _left_aligned(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [n, t] with the real tokens of each row first, in their order."""
    order = (mask == 0).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)
