"""What `pipeline precompute` is told by a configuration file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from contract.views import AudioAugmentation, ImageAugmentation
from encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder

# It becomes the name of a folder, and stands between slashes in field references.
Name = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The frozen encoders by modality; each key becomes the name of a FieldSet."""

    image: dict[Name, ImageEncoder] = field(default_factory=dict)
    text: dict[Name, TextEncoder] = field(default_factory=dict)
    audio: dict[Name, AudioEncoder] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, str, Encoder]]:
        """(modality, FieldSet name, encoder) of each."""
        for modality in ("image", "text", "audio"):
            for name, encoder in getattr(self, modality).items():
                yield modality, name, encoder


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many actors work at a time (None: one a GPU, or one), and how many threads of each decode (None: one a
    core of its share); `device` is torch's name, None a GPU where there is one.
    """

    actors: PositiveInt | None = None
    decode_threads: PositiveInt | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Views:
    """Augmented views: `num` of every image and sound beside the evaluation view, the same for every encoder."""

    num: NonNegativeInt = 0
    seed: NonNegativeInt = 0
    image: ImageAugmentation = field(default_factory=ImageAugmentation)
    audio: AudioAugmentation = field(default_factory=AudioAugmentation)

    def of(self, modality: str) -> ImageAugmentation | AudioAugmentation | None:
        """How views of the modality are made; None if it has the evaluation view alone."""
        made: dict[str, ImageAugmentation | AudioAugmentation] = {"image": self.image, "audio": self.audio}
        return made.get(modality) if self.num else None


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The teacher is scored on so many samples before the run (0: not at all), and refused if it is at chance."""

    num_samples: NonNegativeInt = 256


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """One run of `pipeline precompute`."""

    encoders: Encoders
    views: Views = field(default_factory=Views)
    gate: Gate = Gate()
    workers: Workers = Workers()
