"""A frozen word embedding that needs no weights: hashed character n-grams.

A word's vector is the sum of the random signs that a hash gives for the word and for each of its n-grams, as
in fastText (Bojanowski et al. 2017, arXiv 1607.04606) before any training: words that share n-grams are near each
other, all others nearly orthogonal. Any language, no vocabulary, the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from contract.encodings import Float16, FloatEncoding, Int32
from contract.errors import ConfigError
from contract.schema import Field
from contract.views import TextView

WORD = re.compile(r"\w+|[^\w\s]")
# Marks that stand right behind a word, and between two.
LEFT = re.compile(r" ([.,;:!?%)\]])")
BOTH = re.compile(r"(?<=\w) (['\u2019-]) (?=\w)")
SMALLEST, LARGEST = 3, 5


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How the words are stored."""

    token_embeddings: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared


@dataclass(frozen=True, kw_only=True)
class Ngrams:
    """Words of a caption as vectors of `width` (a multiple of 8, at most 512), at most `max_length` of them."""

    kind: Literal["ngrams"] = "ngrams"
    width: int = 128
    max_length: PositiveInt = 32
    batch_size: PositiveInt = 1024
    encodings: Encodings = field(default_factory=Encodings)

    def __post_init__(self) -> None:
        """Refuse widths that no digest has."""
        if self.width % 8 or not 8 <= self.width <= 512:
            raise ConfigError(f"ngrams: width {self.width} is not a multiple of 8 between 8 and 512")

    def view(self) -> TextView:
        """The caption."""
        return TextView()

    def fields(self) -> tuple[Field, ...]:
        """`token_embeddings` [max_length, width] and `length`."""
        return (
            Field(
                name="token_embeddings",
                shape=(self.max_length, self.width),
                encoding=self.encodings.token_embeddings,
            ),
            Field(name="length", shape=(), encoding=Int32()),
        )

    def recipe(self) -> Mapping[str, Any]:
        """Everything that can change a value."""
        return {
            "kind": self.kind,
            "width": self.width,
            "max_length": self.max_length,
            "ngrams": [SMALLEST, LARGEST],
        }

    def notes(self) -> tuple[str, ...]:
        """There is nothing to override."""
        return ()

    def tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text, in the order of its rows."""
        return [WORD.findall(text.lower())[: self.max_length] for text in texts]

    def text(self, tokens: Sequence[str]) -> str:
        """What is written of words: blanks between them, none before a punctuation mark or around a hyphen."""
        return LEFT.sub(r"\1", BOTH.sub(r"\1", " ".join(tokens)))

    def build(self, device: str) -> _NgramsModel:
        """A callable; `device` is not used, there is nothing to multiply."""
        return _NgramsModel(self)


class _NgramsModel:
    def __init__(self, config: Ngrams) -> None:
        self._config = config
        self._vector = lru_cache(maxsize=100_000)(lambda word: _word_vector(word, config.width))

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}

    def __call__(self, views: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """n captions -> token_embeddings float32 [n, max_length, width], length int32 [n]."""
        config = self._config
        embeddings = np.zeros((len(views), config.max_length, config.width), np.float32)
        lengths = np.zeros(len(views), np.int32)
        for row, words in enumerate(config.tokens(views)):
            lengths[row] = len(words)
            for place, word in enumerate(words):
                embeddings[row, place] = self._vector(word)
        return {"token_embeddings": embeddings, "length": lengths}


def _word_vector(word: str, width: int) -> npt.NDArray[np.float32]:
    marked = f"<{word}>"
    grams = {marked[i : i + n] for n in range(SMALLEST, LARGEST + 1) for i in range(len(marked) - n + 1)}
    # The whole word weighs as much as all its n-grams together: near others that share them, never equal.
    shared = np.sum([_signs(gram, width) for gram in sorted(grams)], axis=0) / np.sqrt(len(grams))
    vector: npt.NDArray[np.float32] = (_signs(marked, width) + shared).astype(np.float32)
    return vector


def _signs(text: str, width: int) -> npt.NDArray[np.float32]:
    digest = hashlib.blake2b(text.encode(), digest_size=width // 8).digest()
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32) * 2 - 1
