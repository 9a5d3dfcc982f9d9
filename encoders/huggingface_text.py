"""Text encoders of transformers: word embeddings, last hidden states and the vector of a caption, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt
from pydantic import PositiveInt

from contract.encodings import Float16, FloatEncoding, Int32, Lookup, TokenEncoding
from contract.errors import ConfigError, DataError
from contract.schema import Field
from contract.views import TextView
from encoders import pretrained, tokens, weights
from encoders.outputs import Precision, autocast, take, to_numpy

if TYPE_CHECKING:
    import torch

DEFAULT = ("token_embeddings", "length")


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored; `lookup`: token ids, and the word-embedding table once."""

    token_embeddings: TokenEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    last_hidden: FloatEncoding = Float16()  # noqa: RUF009
    features: FloatEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class HuggingFaceText:
    """Any tokenizer and encoder that transformers' Auto classes load: BERT's family, T5's encoder.

    `model` is a hub name, a local folder, or `package:NAME/FOLDER`. `layer` says what `token_embeddings` are:
    `embeddings` (a row of the word-embedding table for each token, the modality encoder proper) or `last` (the
    last hidden states, in which each token has seen the whole caption). `take` may add `last_hidden`, the last
    hidden states beside the embeddings, and `features`: their mean over the caption's tokens, special ones
    included, the first of them (`pooling: cls`), or, beside their mean, the largest of the word embeddings in each
    channel and their mean (`first_last`): what the caption says, and with which words.
    """

    kind: Literal["huggingface_text"] = "huggingface_text"
    model: str
    layer: Literal["embeddings", "last"] = "embeddings"
    pooling: Literal["mean", "cls", "first_last"] = "mean"
    take: tuple[str, ...] | None = None
    max_length: PositiveInt = 32
    precision: Precision = "float32"
    batch_size: PositiveInt = 256
    encodings: Encodings = field(default_factory=Encodings)

    def __post_init__(self) -> None:
        """Refuse to look up what is no row of a table."""
        if self._stores_ids and self.layer != "embeddings":
            raise ConfigError(
                f"encodings.token_embeddings: lookup stores rows of the word-embedding table, and layer is "
                f"{self.layer!r}; choose `layer: embeddings`, or another encoding"
            )

    def view(self) -> TextView:
        """The caption."""
        return TextView()

    def fields(self) -> tuple[Field, ...]:
        """`token_embeddings` [max_length, D] and `length`, special tokens included; those of `take`.

        `last_hidden` is [max_length, hidden size], `features` [hidden size], of `first_last` 2 D more.
        """
        config = pretrained.read_config(self._folder, self.model)
        tokens.require_positions(config, self.max_length)
        try:
            hidden = int(config.hidden_size)
        except AttributeError as error:
            raise DataError(f"text encoder {self.model}: {weights.reason(error)}") from error
        # ALBERT, ELECTRA and MobileBERT have word embeddings narrower than their hidden states.
        words = int(getattr(config, "embedding_size", None) or hidden)
        features = hidden + 2 * words if self.pooling == "first_last" else hidden
        fields = (
            Field(
                name="token_embeddings",
                shape=(self.max_length, words if self.layer == "embeddings" else hidden),
                encoding=self.encodings.token_embeddings,
                about={"layer": self.layer},
            ),
            Field(name="last_hidden", shape=(self.max_length, hidden), encoding=self.encodings.last_hidden),
            Field(
                name="features",
                shape=(features,),
                encoding=self.encodings.features,
                about={"pooling": self.pooling},
            ),
            Field(name="length", shape=(), encoding=Int32()),
        )
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Hash of the model's files, wherever they lie, layer, lengths, precision."""
        return {
            "kind": self.kind,
            "weights": weights.folder_fingerprint(self._folder),
            "layer": self.layer,
            "max_length": self.max_length,
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """Nothing of the model's own preprocessing is overridden."""
        return ()

    def tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """The tokens of each text, in the order of its rows; only the tokenizer is loaded."""
        return tokens.strings(self._tokenizer, texts, self.max_length)

    def text(self, strings: Sequence[str]) -> str:
        """What is written of tokens."""
        return tokens.text(self._tokenizer, strings)

    def build(self, device: str) -> _TextModel:
        """The tokenizer and the model with its weights, on `device`."""
        return _TextModel(self, self._folder, device)

    @property
    def _stores_ids(self) -> bool:
        return isinstance(self.encodings.token_embeddings, Lookup)

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _tokenizer(self) -> Any:
        return tokens.load_tokenizer(self._folder, self.model)


class _TextModel:
    def __init__(self, config: HuggingFaceText, folder: Path, device: str) -> None:
        from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING

        self._config, self._device = config, device
        self._names = [field.name for field in config.fields()]
        self._tokenizer = tokens.load_tokenizer(folder, config.model)
        # Of an encoder with a decoder (T5) only the encoder reads text; not all encoders are listed.
        is_listed = type(pretrained.read_config(folder, config.model)) in MODEL_FOR_TEXT_ENCODING_MAPPING
        auto_class = "AutoModelForTextEncoding" if is_listed else "AutoModel"
        self._model = pretrained.load(auto_class, folder, config.model, unused=tokens.UNUSED).to(device)
        self._embedding = self._model.get_input_embeddings()
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """n captions -> the fields float32 [n, ...], tokens zero after `length` int32 [n].

        And "token_embeddings.ids" int32 [n, max_length], if ids are stored.
        """
        import torch

        config = self._config
        batch = self._tokenizer(
            list(views), padding=True, truncation=True, max_length=config.max_length, return_tensors="pt"
        ).to(self._device)
        mask = batch["attention_mask"]
        with torch.inference_mode(), self._autocast:
            outputs = self._outputs(batch)
        for name in ("token_embeddings", "last_hidden"):
            if name in outputs:
                outputs[name] = tokens.padded(outputs[name], mask, config.max_length)
        fields = to_numpy(outputs | {"length": mask.sum(dim=1).int()}, self._names)
        if config._stores_ids and "token_embeddings" in fields:
            fields["token_embeddings.ids"] = tokens.lookup_ids(batch["input_ids"], mask, config.max_length)
        return fields

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """The word-embedding table float32 [V, D], if ids are stored."""
        if not (self._config._stores_ids and "token_embeddings" in self._names):
            return {}
        return {"token_embeddings.table": tokens.word_table(self._embedding)}

    def _outputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`token_embeddings` [n, t, D]; where the model must run, `last_hidden` [n, t, D], `features` [n, D]."""
        import torch

        config, ids, mask = self._config, batch["input_ids"], batch["attention_mask"]
        if config.layer == "embeddings" and not {"last_hidden", "features"} & set(self._names):
            return {"token_embeddings": self._embedding(ids)}
        last, words = self._model(**batch).last_hidden_state, self._embedding(ids)
        features = last[:, 0] if config.pooling == "cls" else tokens.mean(last, mask)
        if config.pooling == "first_last":
            features = torch.cat([tokens.largest(words, mask), tokens.mean(words, mask), features], dim=-1)
        return {
            "token_embeddings": words if config.layer == "embeddings" else last,
            "last_hidden": last,
            "features": features,
        }
