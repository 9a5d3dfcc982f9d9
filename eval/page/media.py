"""Items as a page shows them: thumbnails in WebP, sounds in MP3, captions; each encoded once, within a limit.

A file that is gone, or can't be decoded, is said in its place and stops nothing.
"""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.manifest import NO_LABEL
from contract.paths import inside
from contract.undecodable import UndecodableError
from contract.views import audio, image_file
from contract.views.item import Item
from eval.embedded import Embedded

COLUMNS = ("id", "file", "part", "start_ms", "length_ms", "text", "language", "label")

# Pixels of the longer side: 88 on the page, on screens of twice the density.
THUMBNAIL_SIDE = 160
THUMBNAIL_QUALITY = 72
# Every browser plays MP3; at this rate speech and most sounds are themselves, at 4 kB a second.
SOUND_RATE_HZ = 16_000
SOUND_COMPRESSION = 0.85  # 32 kbit/s
SOUND_S = 4.0
NUM_BARS = 40
MAX_CHARACTERS = 300
MAX_FILE_CHARACTERS = 60
# What a page may hold of pictures and sounds together, as encoded in base64.
MAX_BYTES = 8_000_000
# What a browser may be told that a caption is written in.
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
# Embeddings, overrides and isolates of writing direction: one would let "gpj.exe" read as "exe.jpg".
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail, as a data URI; `key` names it on the page."""

    key: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The beginning of a sound, as a data URI; `bars` are its loudest samples over time, 0 to 1."""

    key: str
    uri: str
    duration_s: float
    is_whole: bool
    bars: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """An item as it is shown; `missing` says why it has neither picture, sound nor caption.

    `text` is a caption: the item's own, or that of an item which belongs to it.
    """

    modality: str
    id: str
    file: str
    text: str
    language: str
    label: int | None
    picture: Picture | None = None
    sound: Sound | None = None
    missing: str = ""

    @property
    def name(self) -> str:
        """In words, for those who can't see or hear it."""
        about = f": {self.text}" if self.text else ""
        return f"{self.modality} {self.id}{about}"


class Media:
    """The items of a split, encoded when they are first asked for, `max_bytes` at most."""

    def __init__(self, split: Embedded, max_bytes: int = MAX_BYTES) -> None:
        self._split = split
        self._root = Path(split.manifest.media_root)
        self.max_bytes = self._left_bytes = max_bytes
        self._captions: dict[str, dict[int, int]] = {}
        self._shown: dict[tuple[str, int], Exhibit] = {}
        self.pictures: dict[str, Picture] = {}
        self.sounds: dict[str, Sound] = {}
        self.num_missing = 0
        self.num_left_out = 0

    @property
    def size_bytes(self) -> int:
        """Of all pictures and sounds that are shown."""
        return self.max_bytes - self._left_bytes

    def exhibit(self, modality: str, position: int) -> Exhibit:
        """The item at a position of the split's items."""
        key = (modality, position)
        if key not in self._shown:
            self._shown[key] = self._exhibit(modality, position)
        return self._shown[key]

    def _exhibit(self, modality: str, position: int) -> Exhibit:
        row = self._row(modality, position)
        described = row if modality == "text" else self._caption(modality, position)
        exhibit = partial(
            Exhibit,
            modality=modality,
            id=row["id"],
            file=_end(row["file"]),
            text=shortened(described["text"]) if described else "",
            language=described["language"] if described and LANGUAGE.fullmatch(described["language"]) else "",
            label=None if row["label"] == NO_LABEL else row["label"],
        )
        if modality == "text":
            return exhibit(missing="" if row["text"].strip() else "an empty caption")
        try:
            return self._with_media(exhibit, modality, f"{modality}-{position}", row)
        except UndecodableError as error:
            self.num_missing += 1
            return exhibit(missing=str(error))

    def _with_media(self, exhibit: Callable[..., Exhibit], modality: str, key: str, row: dict[str, Any]) -> Exhibit:
        if not row["file"]:
            raise UndecodableError("the manifest names no file")
        item = Item(
            id=row["id"],
            file=inside(self._root, row["file"]),
            part=row["part"],
            start_ms=row["start_ms"],
            length_ms=row["length_ms"],
        )
        found = thumbnail(item, key) if modality == "image" else clip(item, key)
        if len(found.uri) > self._left_bytes:
            self.num_left_out += 1
            return exhibit(missing="left out, since this page is full")
        self._left_bytes -= len(found.uri)
        if isinstance(found, Picture):
            self.pictures[key] = found
            return exhibit(picture=found)
        self.sounds[key] = found
        return exhibit(sound=found)

    def _row(self, modality: str, position: int) -> dict[str, Any]:
        return _columns(self._split, modality, int(self._split.items[modality].rows[position]))

    def _caption(self, modality: str, position: int) -> dict[str, Any] | None:
        """The first caption that belongs to an item; None without one."""
        if "text" not in self._split.items:
            return None
        if modality not in self._captions:
            pairs = self._split.positives(modality, "text")[::-1]
            self._captions[modality] = dict(zip(pairs[:, 0].tolist(), pairs[:, 1].tolist(), strict=True))
        place = self._captions[modality].get(position)
        return None if place is None else self._row("text", place)


def thumbnail(item: Item, key: str) -> Picture:
    """A picture of at most `THUMBNAIL_SIDE` pixels a side; `UndecodableError` says why not."""
    image = image_file.decode(item)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=THUMBNAIL_QUALITY)
    return Picture(key=key, uri=_uri("image/webp", file), width=image.width, height=image.height)


def clip(item: Item, key: str) -> Sound:
    """The first `SOUND_S` seconds of a sound; `UndecodableError` says why not."""
    import soundfile
    import soxr

    sound = audio.decode(item, SOUND_S + 0.05)
    samples = sound.samples[: round(SOUND_S * sound.rate_hz)]
    resampled = soxr.resample(samples, sound.rate_hz, SOUND_RATE_HZ) if len(samples) > 1 else samples
    heard = np.nan_to_num(resampled).clip(-1, 1)
    file = io.BytesIO()
    soundfile.write(file, heard, SOUND_RATE_HZ, format="MP3", compression_level=SOUND_COMPRESSION)
    return Sound(
        key=key,
        uri=_uri("audio/mpeg", file),
        duration_s=len(samples) / sound.rate_hz,
        is_whole=len(samples) == len(sound.samples),
        bars=_bars(heard),
    )


def shortened(text: str) -> str:
    """At most `MAX_CHARACTERS` of a text, and an ellipsis for the rest."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1].rstrip()}…"


def visible(text: str) -> str:
    """Control characters written out, since none of them may act on the page; line breaks become spaces."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\t\n\r\u2028\u2029":
        return " "
    is_control = character in BIDI or unicodedata.category(character) in ("Cc", "Cs")
    return f"⟨U+{ord(character):04X}⟩" if is_control else character


def _end(file: str) -> str:
    """The end of a long file name, which tells files apart."""
    return file if len(file) <= MAX_FILE_CHARACTERS else f"…{file[1 - MAX_FILE_CHARACTERS :]}"


def _columns(split: Embedded, modality: str, row: int) -> dict[str, Any]:
    return {name: split.manifest.column(modality, name, [row])[0] for name in COLUMNS}


def _bars(samples: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """The peak of each of `NUM_BARS` stretches, against the loudest of all."""
    if not len(samples):
        return (0.0,) * NUM_BARS
    starts = np.linspace(0, len(samples), NUM_BARS, endpoint=False).astype(np.int64)
    peaks = np.maximum.reduceat(np.abs(samples), starts)
    return tuple((peaks / (peaks.max() or 1.0)).round(2).tolist())


def _uri(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
