"""data2vec's text models: the word embedding of each token, and what a student regresses for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
from pydantic import PositiveInt

from contract.encodings import Float16, FloatEncoding, Int32, Lookup, TokenEncoding
from contract.schema import Field
from contract.views import TextView
from encoders import pretrained, tokens, weights
from encoders.data2vec.targets import Kind, Normalisation, Targets, Version, settle
from encoders.outputs import Caught, Precision, autocast, take, to_numpy

DEFAULT = ("token_embeddings", "targets", "length")


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored; `lookup`: token ids, and the word-embedding table once."""

    token_embeddings: TokenEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    targets: FloatEncoding = Float16()  # noqa: RUF009
    features: FloatEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Data2VecText:
    """A data2vec-text model of transformers: a hub name or a folder, as `Data2VecTextModel` loads it.

    `targets`, `k` and `normalise` choose the targets (encoders/data2vec/targets.py), by default the published
    ones of the `version`.
    """

    kind: Literal["data2vec_text"] = "data2vec_text"
    model: str
    targets: Kind = "topk_mean"
    k: PositiveInt | None = None
    normalise: Normalisation | None = None
    version: Version = 1
    take: tuple[str, ...] | None = None
    max_length: PositiveInt = 32
    precision: Precision = "float32"
    batch_size: PositiveInt = 256
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> TextView:
        """The caption."""
        return TextView()

    def fields(self) -> tuple[Field, ...]:
        """`token_embeddings` and `targets` [max_length, D], row for row the same tokens, and `length`.

        The special tokens at either end are among the rows. `features` [D], which `take` adds: the mean of the last
        block over the tokens, the teacher's own embedding.
        """
        tokens.require_positions(self._config, self.max_length)
        shape = (self.max_length, self._config.hidden_size)
        about = {"special_tokens": True}
        fields = (
            Field(name="token_embeddings", shape=shape, encoding=self.encodings.token_embeddings, about=about),
            Field(
                name="targets", shape=shape, encoding=self.encodings.targets, about=self._targets.about() | about
            ),
            Field(name="features", shape=shape[1:], encoding=self.encodings.features, about={"pooling": "mean"}),
            Field(name="length", shape=(), encoding=Int32()),
        )
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Hash of the model's files, wherever they lie, targets, length, precision."""
        return {
            "kind": self.kind,
            "weights": weights.folder_fingerprint(self._folder),
            "targets": self._targets.about(),
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
        return _TextModel(self, device)

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _tokenizer(self) -> Any:
        return tokens.load_tokenizer(self._folder, self.model)

    @cached_property
    def _config(self) -> Any:
        return pretrained.read_config(self._folder, self.model, "data2vec-text")

    @cached_property
    def _targets(self) -> Targets:
        return settle(self, "text", self._config.num_hidden_layers)


class _TextModel:
    def __init__(self, config: Data2VecText, device: str) -> None:
        self._config, self._targets, self._device = config, config._targets, device
        self._names = [field.name for field in config.fields()]
        self._stores_ids = "token_embeddings" in self._names and isinstance(
            config.encodings.token_embeddings, Lookup
        )
        self._tokenizer = tokens.load_tokenizer(config._folder, config.model)
        self._model = pretrained.load(
            "AutoModel",
            config._folder,
            config.model,
            unused=tokens.UNUSED,
            # In chunks, the feed-forward network would run several times a pass, and the last one be caught.
            chunk_size_feed_forward=0,
        ).to(device)
        self._caught = Caught(
            self._model,
            {"token_embeddings": "embeddings.word_embeddings"}
            | self._targets.modules("encoder.layer.{}", "encoder.layer.{}.output.dense"),
        )
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """n captions -> token_embeddings, targets float32 [n, max_length, D], zero after `length` int32 [n].

        And features float32 [n, D]; "token_embeddings.ids" int32 [n, max_length], if ids are stored.
        """
        import torch

        max_length = self._config.max_length
        batch = self._tokenizer(
            list(views), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        ).to(self._device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        self._caught.clear()
        with torch.inference_mode():
            with self._autocast:
                last = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            outputs = {
                "token_embeddings": tokens.padded(self._caught["token_embeddings"], mask, max_length),
                "targets": tokens.padded(self._targets.of(self._caught, mask=mask), mask, max_length),
                "features": tokens.mean(last, mask),
                "length": mask.sum(dim=1).int(),
            }
        fields = to_numpy(outputs, self._names)
        if self._stores_ids:
            fields["token_embeddings.ids"] = tokens.lookup_ids(ids, mask, max_length)
        return fields

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """The word-embedding table float32 [V, D], if ids are stored."""
        if not self._stores_ids:
            return {}
        return {"token_embeddings.table": tokens.word_table(self._model.get_input_embeddings())}
