"""What `pipeline precompute` is told by a configuration file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

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
class Share:
    """What Ray sets aside for an actor: cores, GPUs, and what a cluster calls its own, such as {decoding: 1}."""

    num_cpus: NonNegativeFloat | None = None
    num_gpus: NonNegativeFloat | None = None
    custom: dict[str, PositiveFloat] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where actors go on a cluster: unless told otherwise, a teacher takes a GPU and no core, a decoder a core."""

    teacher: Share = field(default_factory=Share)
    decoder: Share = field(default_factory=Share)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does the work.

    `actors` run encoders (None: one a GPU, or one) on `device`, torch's name (None: a GPU where there is one), and
    each decodes in `decode_threads` (None: one a core of its share). With `decoders`, so many actors decode for
    them instead, on any node that has the `resources`, in so many threads each (None: its `num_cpus`).
    """

    actors: PositiveInt | None = None
    decoders: NonNegativeInt = 0
    decode_threads: PositiveInt | None = None
    device: str | None = None
    resources: Resources = field(default_factory=Resources)


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
