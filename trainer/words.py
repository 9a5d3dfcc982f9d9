"""Words: what the tokens of captions are, row for row those that the store keeps of them.

    caption --the frozen encoder's tokenizer--> strings [t] --vocabulary--> ids [t]

The vocabulary is that of the training captions alone, the most frequent string first, behind [unknown]. Of more
than MOST_CAPTIONS captions it takes so many, evenly spread; of more than MOST_WORDS strings the most frequent. It
depends on nothing but the captions and the tokenizer, so that a resumed run has the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from contract.errors import ConfigError, StoreError
from contract.manifest import Rows
from contract.schema import FieldSet
from contract.store import TargetStore
from encoders import Tokenizing
from trainer.batch import StoredTokens
from trainer.captions import captions
from trainer.source import encoder

UNKNOWN = "[unknown]"
# What stands behind a caption's last token.
PADDING = -1
MOST_CAPTIONS = 100_000
MOST_WORDS = 30_000


class Words:
    """The vocabulary of texts that `texts` gives, and the ids of captions in it.

    `fieldset` is the one that the captions' tokens are in, of the store `name`. The vocabulary costs a pass over
    the texts, once, when it is first asked for.
    """

    def __init__(self, fieldset: FieldSet, name: str, texts: Callable[[], Sequence[str]]) -> None:
        self._name, self._texts = f"{name}: {fieldset.key}", texts
        found = encoder(fieldset, self._name, "what its tokens are can't be told")
        if not isinstance(found, Tokenizing):
            raise ConfigError(
                f"{self._name}: what the tokens of an encoder of kind {fieldset.provenance['encoder']['kind']} are "
                "can't be told; leave the objectives that read words out"
            )
        self._encoder = found
        self._field = next(field.name for field in fieldset.fields if len(field.shape) == 2)
        self._lock = Lock()  # a tokenizer may not be asked by two threads at once

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The strings; an id is a place in it."""
        counts = Counter(string for text in self._tokens(self._texts()) for string in text)
        ordered = sorted(counts, key=lambda string: (-counts[string], string))
        return (UNKNOWN, *ordered[:MOST_WORDS])

    @cached_property
    def special(self) -> tuple[int, ...]:
        """The ids of what stands around any caption, such as [CLS]: the tokens of an empty one."""
        (strings,) = self._tokens([""])
        return tuple(sorted({self._ids[string] for string in strings if string in self._ids}))

    def ids(self, texts: Sequence[str], stored: StoredTokens) -> Tensor:
        """Ids int64 [n, t] of n captions for the tokens that are stored of them; -1 past each one's end.

        `StoreError` where the tokenizer finds another number.
        """
        found = self._tokens(texts)
        assert stored.length is not None  # every field of words has lengths beside it
        ids = torch.full((len(found), max([1, *map(len, found)])), PADDING, dtype=torch.int64)
        for row, (strings, count) in enumerate(zip(found, stored.length.tolist(), strict=True)):
            if len(strings) != count:
                raise StoreError(
                    f"{self._name} has {count} tokens of the caption {texts[row][:60]!r}, and its encoder's "
                    f"tokenizer finds {len(strings)}: one of the two has changed; fill the store anew"
                )
            ids[row, :count] = torch.tensor([self._ids.get(string, 0) for string in strings], dtype=torch.int64)
        return ids

    def vectors(self) -> Tensor:
        """The frozen encoder's vectors of the vocabulary, float32 [V, D]: of each string the mean over captions.

        Where a vector does not depend on its neighbours, that is the vector itself. Captions are encoded in their
        order, those that have a string which none before had; the row of [unknown] is the mean of all others.
        """
        model = self._encoder.build("cpu")
        num_words = len(self.vocabulary)
        known: set[int] = set()
        sums: Tensor | None = None
        counts = torch.zeros(num_words, dtype=torch.int64)
        for texts in _chunks(list(dict.fromkeys(self._texts())), self._encoder.batch_size):
            rows = [[self._ids.get(string, 0) for string in strings] for strings in self._tokens(texts)]
            chosen = []
            for number, row in enumerate(rows):
                if not known.issuperset(row):
                    known.update(row)
                    chosen.append(number)
            if not chosen:
                continue
            values = model([texts[number] for number in chosen])[self._field]
            for number, vectors in zip(chosen, torch.from_numpy(values).float(), strict=True):
                sums = torch.zeros(num_words, vectors.shape[-1]) if sums is None else sums
                ids = torch.tensor(rows[number], dtype=torch.int64)
                sums.index_add_(0, ids, vectors[: len(ids)])
                counts += torch.bincount(ids, minlength=num_words)
        assert sums is not None  # the vocabulary has at least one word, and so some caption has
        vectors = sums / counts.clamp(min=1)[:, None]
        vectors[0] = vectors[1:].mean(0)
        return vectors

    def text(self, ids: Sequence[int]) -> str:
        """What is written of these words, such as a caption that was generated."""
        with self._lock:
            return self._encoder.text([self.vocabulary[number] for number in ids])

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {string: number for number, string in enumerate(self.vocabulary)}

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        with self._lock:
            return self._encoder.tokens(texts)


def _chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for first in range(0, len(texts), size):
        yield texts[first : first + size]


def spread(parts: Sequence[tuple[TargetStore, Rows]], most: int = MOST_CAPTIONS) -> list[str]:
    """The captions of stores in these rows; of more than `most` of them all, so many that are evenly spread."""
    total = sum(len(rows) for _, rows in parts)
    places = np.linspace(0, total - 1, min(most, total)).astype(np.int64)
    texts, first = [], 0
    for store, rows in parts:
        own = places[(places >= first) & (places < first + len(rows))] - first
        texts += captions(store, rows[own])
        first += len(rows)
    return texts
