"""Captions as a run reads them: as the manifest has them, or rewritten and then encoded anew.

A frozen encoder whose row for a token does not depend on the token's neighbours (hashed words, rows of a
word-embedding table) costs next to nothing, so that a caption may be changed after the store was filled. What it
gives is encoded as the store encodes it: a batch is the one that a store of the changed captions would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
import torch

from contract.errors import ConfigError
from contract.manifest import Rows
from contract.store import TargetStore
from encoders import Encoder
from encoders.clip import ClipText
from encoders.huggingface_text import HuggingFaceText
from encoders.ngrams import Ngrams
from trainer.batch import StoredTokens
from trainer.source import encoder
from trainer.stored import StoredField
from trainer.transforms import Transform

TEXT = "text"
FIELDS = ("token_embeddings", "length")


def captions(store: TargetStore, rows: Rows) -> list[str]:
    """The captions in these rows, as encoders are shown them."""
    return [text.strip() for text in store.manifest.column(TEXT, "text", rows)]


class Rewritten:
    """The captions of a store as `transforms` rewrite them, in the field `values` and its lengths."""

    def __init__(self, store: TargetStore, values: str, transforms: Sequence[Transform]) -> None:
        key, _, name = values.rpartition("/")
        kinds = ", ".join(transform.kind for transform in transforms)
        where = f"{store.path}: {key}"
        found = encoder(store.fieldsets[key], where, f"{kinds} can't rewrite its captions")
        if name != FIELDS[0] or not _is_of_words_alone(found):
            raise ConfigError(
                f"transform {kinds}: in {store.path} {values} a token's row depends on its neighbours; rewrite "
                "captions for encoders of words alone: ngrams, huggingface_text with `layer: embeddings`, clip_text"
            )
        if isinstance(found, HuggingFaceText | ClipText):
            found = replace(found, take=FIELDS)
        self._store, self._key = store, key
        self._model = found.build("cpu")
        self._lock = Lock()  # a tokenizer may not be asked by two threads at once
        self._changes = [transform.build() for transform in transforms]

    @property
    def additions(self) -> list[str]:
        """What the captions may have that the store's have not."""
        return [text for change in self._changes for text in change.additions]

    def texts(self, texts: Sequence[str], rows: Rows, key: Sequence[int]) -> list[str]:
        """n captions, rewritten: a function of each caption, its row int64 [n] and the key alone."""
        changed = list(texts)
        for number, change in enumerate(self._changes):
            changed = change(changed, rows, (*key, number))
        return changed

    def tokens(self, texts: Sequence[str]) -> StoredTokens:
        """The tokens of n captions, as they would be stored."""
        with self._lock:
            outputs = self._model(texts)
        arrays = {}
        for name in FIELDS:
            field = self._store.field(f"{self._key}/{name}")
            source = field.encoding.source
            values = outputs[f"{name}.{source}" if source else name]
            for stored, array in field.encode(values, self._store.constants(self._key)).items():
                dtype, _ = field.arrays[stored]
                arrays[stored] = torch.from_numpy(np.ascontiguousarray(array).view(np.dtype(dtype)))
        length = arrays.pop(FIELDS[1])
        values_field = StoredField(store=self._store, reference=f"{self._key}/{FIELDS[0]}")
        return StoredTokens(values=values_field, arrays=arrays, length=length)


def _is_of_words_alone(encoder: Encoder) -> bool:
    return isinstance(encoder, Ngrams | ClipText) or (
        isinstance(encoder, HuggingFaceText) and encoder.layer == "embeddings"
    )
