"""Code-switching: each word of a caption is replaced, with probability beta, by a translation.

    word -> language, evenly among those whose dictionary has the word -> one of its translations there, evenly

Ni et al. 2021, M3P (arXiv 2006.02635), after Qin et al. 2020 (arXiv 2006.06402). A dictionary is a file in the
format of MUSE (Conneau et al. 2018, arXiv 1710.04087): a word and, behind a blank or a tab, a translation in each
line, one line for each translation. Words are looked up in lower case; those that no dictionary has stay as they
are. What becomes of a word is a function of seed, stream, epoch, the caption's row and the word's place in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from contract import config
from contract.errors import ConfigError
from contract.manifest import Rows
from trainer.permutation import drawn

FOLDER = "configs/dictionaries"
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
# Far more than a caption has words.
MOST_WORDS = 1 << 20
# Draws are numbers from 0 .. EVENLY - 1.
EVENLY = 1 << 53


@dataclass(frozen=True, kw_only=True)
class CodeSwitch:
    """`dictionaries` are files, or names of shipped ones (configs/dictionaries), one for each language."""

    kind: Literal["code_switch"] = "code_switch"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    dictionaries: Annotated[tuple[str, ...], Field(min_length=1)]

    def build(self) -> CodeSwitched:
        """The transform, with its dictionaries read."""
        return CodeSwitched(self.beta, [read(find(name)) for name in self.dictionaries])


class CodeSwitched:
    """Captions in, captions out; `additions` are all translations."""

    def __init__(self, beta: float, dictionaries: Sequence[dict[str, tuple[str, ...]]]) -> None:
        self._beta = beta
        self._options: dict[str, list[tuple[str, ...]]] = {}
        for dictionary in dictionaries:
            for word, translations in dictionary.items():
                self._options.setdefault(word, []).append(translations)
        self.additions = [
            translation
            for options in self._options.values()
            for translations in options
            for translation in translations
        ]

    def __call__(self, texts: Sequence[str], rows: Rows, key: Sequence[int]) -> list[str]:
        """n captions and their rows, int64 [n] -> n captions."""
        counts = [len(WORD.findall(text)) for text in texts]
        places = np.repeat(rows * MOST_WORDS, counts) + np.concatenate([np.arange(count) for count in counts])
        draws = iter(np.stack([drawn(places, EVENLY, (*key, use)) for use in range(3)], axis=1).tolist())
        return [WORD.sub(lambda word: self._said(word[0], *next(draws)), text) for text in texts]

    def _said(self, word: str, chance: int, language: int, translation: int) -> str:
        """The word, or what three draws make of it."""
        options = self._options.get(word.lower())
        if options is None or chance >= self._beta * EVENLY:
            return word
        translations = options[language % len(options)]
        return translations[translation % len(translations)]


def find(name: str) -> Path:
    """A user's own dictionary, or the shipped one of that name."""
    shipped = config.SHIPPED / FOLDER
    for path in (Path(name), shipped / f"{name}.tsv"):
        if path.is_file():
            return path
    known = sorted(file.stem for file in shipped.glob("*.tsv"))
    raise ConfigError(f"code_switch: {name} is no file, and no shipped dictionary; there are: {', '.join(known)}")


@cache
def read(path: Path) -> dict[str, tuple[str, ...]]:
    """The translations of each word, in the order of the file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        word, *rest = line.split(maxsplit=1)[:2] or [""]
        if not rest:
            raise ConfigError(f"{path}: line {number}: a word and its translation are expected, found {line!r}")
        found.setdefault(word.lower(), []).append(rest[0].strip())
    if not found:
        raise ConfigError(f"{path}: no word is in it")
    return {word: tuple(translations) for word, translations in found.items()}
