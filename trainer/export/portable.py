"""A frozen encoder as a module that ONNX can hold, and what happens to an input before it.

What happens to a file or a text outside of the model is told by `preprocessing`, which contract/bundle.py obeys:

    pixels    decoded, resized and cropped; the model normalises
    views     the same for each member of an ensemble, in the size that is its own
    samples   decoded, mixed down, resampled; the model makes the spectrogram
    tokens    the tokenizer's ids
    ngrams    words as hashed vectors
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from contract.errors import ConfigError
from encoders import Encoder
from encoders.clip import ClipImage, ClipText
from encoders.data2vec import Data2VecAudio, Data2VecImage, Data2VecText
from encoders.ensemble import Ensemble
from encoders.huggingface_audio import HuggingFaceAudio
from encoders.huggingface_image import HuggingFaceImage
from encoders.huggingface_text import HuggingFaceText
from encoders.log_mel import LogMel
from encoders.ngrams import Ngrams
from encoders.outputs import in_float32
from encoders.timm_image import TimmImage
from encoders.yamnet import Yamnet

# The first axis of every input.
BATCH = "batch"


@dataclass(frozen=True, kw_only=True, eq=False)
class Portable:
    """`frozen(*inputs)` gives tokens float [B, T, D] and how many of a row are real, int64 [B] (None: all), or
    vectors [B, D] and None.

    `inputs` are the names of its inputs, `axes` the sizes that may vary besides B: {input: {axis: (name, least,
    most)}}. `example(n)` makes inputs of n items. `save(folder)` writes the encoder as its own library loads it and
    returns the line of Python that does, "" where there is nothing to save; `tokenizer(file)` writes the tokenizer.
    """

    frozen: nn.Module
    preprocessing: Mapping[str, Any]
    inputs: tuple[str, ...]
    example: Callable[[int], tuple[Tensor, ...]]
    axes: Mapping[str, Mapping[int, tuple[str, int, int]]]
    save: Callable[[Path], str]
    tokenizer: Callable[[Path], None] | None = None


def portable(encoder: Encoder, field: str, has_length: bool, name: str) -> Portable:
    """The encoder's `field`, computed in float32; `has_length` says whether the student is told the length.

    `name` is the FieldSet's, for errors.
    """
    from trainer.export import images, joined, sounds, texts

    if isinstance(encoder, Ensemble):
        if field == "features":
            return joined.of_members(encoder, name)
        if field != "patch_embeddings":
            raise ConfigError(f"{name}: an ensemble's {field} can't be exported as input")
        return portable(encoder.members[0], field, has_length, name)
    made: Any = in_float32(encoder)
    if isinstance(made, HuggingFaceText | ClipText | Data2VecText):
        return texts.of_tokens(made, field, has_length, name)
    if isinstance(made, Ngrams):
        return texts.of_words(made, has_length, name)
    if isinstance(made, TimmImage | HuggingFaceImage | ClipImage | Data2VecImage):
        return images.of_pixels(made, field, name)
    if isinstance(made, LogMel):
        return sounds.of_patches(made, has_length, name)
    if isinstance(made, Yamnet):
        return sounds.of_windows(made, field, has_length, name)
    if isinstance(made, HuggingFaceAudio | Data2VecAudio):
        return sounds.of_waveforms(made, field, has_length, name)
    raise ConfigError(
        f"{name} can't be exported: its encoder is of kind {made.kind}, which has no portable form; "
        "`trainer embed` writes its embeddings"
    )


def require_length(has_length: bool, name: str) -> None:
    """Refuse a sequence whose padding the student can't tell from what is real."""
    if not has_length:
        raise ConfigError(f"{name} can't be exported: the store keeps no length beside its tokens")


def no_weights(folder: Path) -> str:
    """`save` of an encoder that has none."""
    return ""
