"""Text encoders of transformers: the embedding of every token of a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from contract.encodings import Float16, Int32, Lookup, TokenEncoding
from contract.encodings.lookup import PADDING
from contract.errors import ConfigError, DataError
from contract.schema import Field
from contract.views import TextView
from encoders import weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How the tokens are stored: as numbers, or as ids and the word-embedding table once (`lookup`)."""

    token_embeddings: TokenEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared


@dataclass(frozen=True, kw_only=True)
class HuggingFaceText:
    """Any tokenizer and model that transformers' Auto classes load.

    `model` is a hub name, a local folder, or `package:NAME/FOLDER`. `layer` says which embedding is stored:
    `embeddings` (a row of the word-embedding table for each token, the modality encoder proper) or `last` (the
    last hidden states, in which each token has seen the whole caption).
    """

    kind: Literal["huggingface_text"] = "huggingface_text"
    model: str
    layer: Literal["embeddings", "last"] = "embeddings"
    max_length: PositiveInt = 32
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
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
        """`token_embeddings` [max_length, hidden size] and `length`, special tokens included."""
        from transformers import AutoConfig

        try:
            about = AutoConfig.from_pretrained(self._folder)
            # ALBERT, ELECTRA and MobileBERT have word embeddings narrower than their hidden states.
            narrow = getattr(about, "embedding_size", None) if self.layer == "embeddings" else None
            width = int(narrow or about.hidden_size)
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"text encoder {self.model}: {' '.join(str(error).split())[:300]}") from error
        return (
            Field(
                name="token_embeddings",
                shape=(self.max_length, width),
                encoding=self.encodings.token_embeddings,
                about={"layer": self.layer},
            ),
            Field(name="length", shape=(), encoding=Int32()),
        )

    def recipe(self) -> Mapping[str, Any]:
        """Model, hash of its files, layer, lengths, precision."""
        return {
            "kind": self.kind,
            "model": self.model,
            "weights": weights.folder_fingerprint(self._folder),
            "layer": self.layer,
            "max_length": self.max_length,
            "precision": self.precision,
        }

    def build(self, device: str) -> _TextModel:
        """The tokenizer and the model with its weights, on `device`."""
        return _TextModel(self, self._folder, device)

    @property
    def _stores_ids(self) -> bool:
        return isinstance(self.encodings.token_embeddings, Lookup)

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)


class _TextModel:
    def __init__(self, config: HuggingFaceText, folder: Path, device: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # the run has one of its own
        self._config, self._device = config, device
        try:
            # The first `length` tokens are the real ones, and half weights are computed with in float32.
            self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
            self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
            self._model = AutoModel.from_pretrained(folder).float().eval().requires_grad_(False).to(device)
        except (OSError, ValueError) as error:
            raise DataError(f"text encoder {config.model}: {' '.join(str(error).split())[:300]}") from error
        self._autocast = torch.autocast(
            torch.device(device).type, getattr(torch, config.precision), enabled=config.precision != "float32"
        )

    def __call__(self, views: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """n captions -> token_embeddings float32 [n, max_length, D], zero after `length` int32 [n].

        And "token_embeddings.ids" int32 [n, max_length], if ids are stored.
        """
        import torch

        tokens = self._tokenizer(
            list(views), padding=True, truncation=True, max_length=self._config.max_length, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode(), self._autocast:
            mask = tokens["attention_mask"]
            hidden = self._hidden(tokens) * mask.unsqueeze(-1)
            padded = torch.nn.functional.pad(hidden.float(), (0, 0, 0, self._config.max_length - hidden.shape[1]))
        fields = {"token_embeddings": padded.cpu().numpy(), "length": mask.sum(dim=1).int().cpu().numpy()}
        if self._config._stores_ids:
            ids = np.full(padded.shape[:2], PADDING, np.int32)
            ids[:, : mask.shape[1]] = tokens["input_ids"].masked_fill(mask == 0, PADDING).cpu().numpy()
            fields["token_embeddings.ids"] = ids
        return fields

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """The word-embedding table float32 [V, D], as the model itself looks it up, if ids are stored."""
        import torch

        if not self._config._stores_ids:
            return {}
        embedding = self._model.get_input_embeddings()
        with torch.inference_mode():
            rows = embedding(torch.arange(embedding.num_embeddings, device=self._device))
        return {"token_embeddings.table": rows.float().cpu().numpy()}

    def _hidden(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self._config.layer == "embeddings":
            rows: torch.Tensor = self._model.get_input_embeddings()(tokens["input_ids"])
            return rows
        last: torch.Tensor = self._model(**tokens).last_hidden_state
        return last
