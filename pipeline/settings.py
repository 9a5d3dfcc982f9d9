"""What `pipeline precompute` is told by a configuration file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The frozen encoders by modality; each key becomes the name of a FieldSet."""

    image: dict[str, ImageEncoder] = field(default_factory=dict)
    text: dict[str, TextEncoder] = field(default_factory=dict)
    audio: dict[str, AudioEncoder] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, str, Encoder]]:
        """(modality, FieldSet name, encoder) of each."""
        for modality in ("image", "text", "audio"):
            for name, encoder in getattr(self, modality).items():
                yield modality, name, encoder


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many actors work at a time, and how many threads of each decode; None: what the machine has."""

    actors: int | None = None
    decode_threads: int = 2
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """One run of `pipeline precompute`."""

    encoders: Encoders
    workers: Workers = Workers()
