"""Frozen text encoders for ONNX: a tokenizer's ids, or vectors of hashed words."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from encoders.clip import ClipText
from encoders.data2vec import Data2VecText
from encoders.huggingface_text import HuggingFaceText
from encoders.ngrams import LARGEST, SMALLEST, WORD, Ngrams
from trainer.export.frozen import save_transformers
from trainer.export.portable import Portable, no_weights, require_length

Encoder = HuggingFaceText | ClipText | Data2VecText

# What contract/bundle.py makes of a text.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SEQUENCES = ("token_embeddings", "last_hidden")


def of_tokens(encoder: Encoder, field: str, has_length: bool, name: str) -> Portable:
    """A text encoder of transformers."""
    if field not in (*SEQUENCES, "features", "embedding"):
        raise ConfigError(f"{name}: data2vec's {field} are what a student learns, and can't be exported as input")
    if field in SEQUENCES:
        require_length(has_length, name)
    built: Any = encoder.build("cpu")
    max_length = encoder._num_tokens if isinstance(encoder, ClipText) else encoder.max_length
    runs = field != "token_embeddings" or getattr(encoder, "layer", "embeddings") == "last"
    inputs = _inputs(built._tokenizer, name) if runs else INPUTS[:2]
    pads = field == "embedding" and built._padding == "max_length"
    about = _preprocessing(built._tokenizer, name) | {"max_length": max_length, "inputs": list(inputs)}
    return Portable(
        frozen=Frozen(built, field, inputs, runs),
        preprocessing={"kind": "tokens", **about, "pads_to_max_length": pads},
        inputs=inputs,
        example=partial(_example, inputs, max_length, len(built._tokenizer)),
        axes={} if pads else {one: {1: ("tokens", 2, max_length)} for one in inputs},
        save=partial(save_transformers, encoder._folder),
        tokenizer=partial(_save_tokenizer, built._tokenizer),
    )


def of_words(encoder: Ngrams, has_length: bool, name: str) -> Portable:
    """Hashed words, which contract/bundle.py makes: there is nothing to multiply."""
    require_length(has_length, name)
    shape = (encoder.max_length, encoder.width)
    return Portable(
        frozen=Words(),
        preprocessing={
            "kind": "ngrams",
            "max_length": encoder.max_length,
            "width": encoder.width,
            "ngrams": [SMALLEST, LARGEST],
            "word": WORD.pattern,
        },
        inputs=("vectors", "length"),
        example=lambda n: (torch.randn(n, *shape), torch.arange(n) % encoder.max_length + 1),
        axes={},
        save=no_weights,
    )


class Frozen(nn.Module):
    """`field` of a built text encoder; `runs` says whether the model runs, or only looks words up."""

    def __init__(self, built: Any, field: str, inputs: tuple[str, ...], runs: bool) -> None:
        super().__init__()
        self.embedding = (
            built._model.get_input_embeddings() if not hasattr(built, "_embedding") else built._embedding
        )
        self.network = built._model if runs else None
        self._built, self._field, self._inputs = [built], field, inputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ids and mask int64 [B, T], and what else the model takes -> float [B, T, D] and int64 [B], or [B, D]."""
        given = dict(zip(self._inputs, inputs, strict=True))
        length = given["attention_mask"].sum(1)
        if self.network is None:
            return self.embedding(given["input_ids"]), length
        if self._field == "embedding":
            made = self.network.get_text_features(**given)
            return getattr(made, "pooler_output", made), None
        values: Tensor = self._built[0]._outputs(given)[self._field]
        return values, length if self._field in SEQUENCES else None


class Words(nn.Module):
    """The vectors as they are."""

    def forward(self, vectors: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, T, D] and int64 [B] -> the same."""
        return vectors, length


def _inputs(tokenizer: Any, name: str) -> tuple[str, ...]:
    """What the model takes of what the tokenizer gives."""
    unknown = set(tokenizer.model_input_names) - set(INPUTS)
    if unknown:
        raise ConfigError(f"{name} can't be exported: its model takes {', '.join(sorted(unknown))}")
    return tuple(one for one in INPUTS if one in tokenizer.model_input_names or one == "attention_mask")


def _preprocessing(tokenizer: Any, name: str) -> dict[str, Any]:
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"{name} can't be exported: its {type(tokenizer).__name__} has no tokenizer.json")
    if (tokenizer.padding_side, tokenizer.truncation_side) != ("right", "right"):
        raise ConfigError(f"{name} can't be exported: its tokenizer pads or cuts texts on the left")
    return {
        "tokenizer": "tokenizer.json",
        "padding_id": tokenizer.pad_token_id,
        "padding_type_id": tokenizer.pad_token_type_id,
    }


def _save_tokenizer(tokenizer: Any, file: Path) -> None:
    tokenizer.backend_tokenizer.save(str(file))


def _example(inputs: tuple[str, ...], max_length: int, num_words: int, n: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, num_words, (n, max_length), generator=generator)
    mask = (torch.arange(max_length) < (torch.arange(n) % max_length).clamp(min=2)[:, None]).long()
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(made[one] for one in inputs)
