"""Frozen models: the teachers and the modality encoders that fill a store.

An encoder is a frozen dataclass, the part of a configuration that names it. Everything but `build` costs no
weights, so that a run can be planned without loading any:

    view()        what it is shown of an item
    fields()      the fields that one forward pass gives, with their shapes
    recipe()      everything that can change a value: model, hash of the weights, preprocessing, precision
    build(device) the model, a callable: list of n views -> {field: float32 [n, ...]}

For a field whose encoding stores something else than its values (pixels, token ids), the model also gives that, as
"<field>.<source>", and has `constants()`: what turns it into the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy.typing as npt
from pydantic import Field as Discriminated

from contract.schema import Field
from contract.views import View
from encoders.clip import ClipImage, ClipText
from encoders.custom import CustomAudio, CustomImage, CustomText
from encoders.data2vec import Data2VecAudio, Data2VecImage, Data2VecText
from encoders.ensemble import Ensemble
from encoders.huggingface_audio import HuggingFaceAudio
from encoders.huggingface_image import HuggingFaceImage
from encoders.huggingface_text import HuggingFaceText
from encoders.log_mel import LogMel
from encoders.ngrams import Ngrams
from encoders.timm_image import TimmImage
from encoders.yamnet import Yamnet

Arrays = dict[str, npt.NDArray[Any]]


class FrozenModel(Protocol):
    """A built encoder."""

    def __call__(self, views: Sequence[Any]) -> Arrays:
        """Every field of n views, [n, ...] each."""

    def constants(self) -> Arrays:
        """By name, the arrays that its fields' encodings keep once and do not measure themselves."""


class Encoder(Protocol):
    """What the configurations below have in common."""

    @property
    def batch_size(self) -> int:
        """Views in one forward pass."""

    def view(self) -> View:
        """What the encoder is shown of an item."""

    def fields(self) -> tuple[Field, ...]:
        """The fields of its FieldSet."""

    def recipe(self) -> Mapping[str, Any]:
        """What can change a value, as a JSON-able tree."""

    def notes(self) -> tuple[str, ...]:
        """What a user should know before a run: overrides of the model's own preprocessing, a line each."""

    def build(self, device: str) -> FrozenModel:
        """Load the weights."""


# A new encoder is a file beside this one and one name in the line of its modality.
ImageEncoder = Annotated[
    TimmImage | HuggingFaceImage | ClipImage | Data2VecImage | CustomImage | Ensemble,
    Discriminated(discriminator="kind"),
]
TextEncoder = Annotated[
    HuggingFaceText | ClipText | Data2VecText | CustomText | Ngrams, Discriminated(discriminator="kind")
]
# Those that tell the tokens of a text, row for row: `tokens(texts)`, list of n texts -> list of n lists of strings,
# and what is written of them: `text(strings)`.
Tokenizing = HuggingFaceText | ClipText | Data2VecText | Ngrams
AudioEncoder = Annotated[
    HuggingFaceAudio | Data2VecAudio | Yamnet | CustomAudio | LogMel, Discriminated(discriminator="kind")
]
ENCODERS: dict[str, Any] = {"image": ImageEncoder, "text": TextEncoder, "audio": AudioEncoder}
