"""Sound models of transformers: wav2vec2's family, which reads samples, and the Audio Spectrogram Transformer.

family                      patch_embeddings           patch_features   features
wav2vec2, HuBERT, WavLM,    the convolutions' vector   last hidden      what the classifier is given: the mean
UniSpeech, SEW, data2vec    of each frame              states           over frames of the projected states;
                                                                        without one, of the states
AST                         the projection of each     last hidden      the mean of the CLS and distillation
                            16 x 16 patch              states           tokens, which the classifier is given
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt

from contract.encodings import Float16, FloatEncoding, Int32, LogitsEncoding
from contract.errors import ConfigError
from contract.schema import Field
from contract.views import AudioView
from encoders import pretrained, waveforms, weights
from encoders.outputs import Caught, Precision, autocast, take, to_numpy

if TYPE_CHECKING:
    import torch

SPECTROGRAM = "audio-spectrogram-transformer"
FAMILIES = (
    "data2vec-audio",
    "hubert",
    "sew",
    "sew-d",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
    SPECTROGRAM,
)
DEFAULT = ("patch_embeddings", "features", "logits", "length")
# AST's spectrogram: frames of 25 ms every 10 ms; in front of the patches stand CLS and the distillation token.
WINDOW_S, HOP_S = 0.025, 0.010
NUM_PREFIX = 2


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored."""

    patch_embeddings: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    patch_features: FloatEncoding = Float16()  # noqa: RUF009
    features: FloatEncoding = Float16()  # noqa: RUF009
    logits: LogitsEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class HuggingFaceAudio:
    """A sound model of transformers: a hub name or a folder, as `AutoModelForAudioClassification` loads it, or
    `AutoModel` what was not saved with a classifier.

    It hears the first `duration_s` seconds, prepared by its own feature extractor. `multi_label` says whether the
    logits are of classes that may be true together (sigmoid) or of one distribution (softmax); None: as the
    model's `problem_type` says, which many checkpoints leave out.
    """

    kind: Literal["huggingface_audio"] = "huggingface_audio"
    model: str
    take: tuple[str, ...] | None = None
    duration_s: PositiveFloat = 10.0
    multi_label: bool | None = None
    precision: Precision = "float32"
    batch_size: PositiveInt = 16
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> AudioView:
        """The start of the sound, mono, at the rate of the model's feature extractor."""
        return AudioView(sample_rate_hz=self._extractor.sampling_rate, duration_s=self.duration_s)

    def fields(self) -> tuple[Field, ...]:
        """`patch_embeddings` [T, C], `patch_features` [T, D], `features`, `logits`, and `length` of sounds' frames.

        Row t of the first two is the same frame, or patch t of the grid, frequency by frequency. AST hears all of
        its spectrogram, silence after the sound too, and has no `length`.
        """
        config, encodings = self._config, self.encodings
        if self._is_spectrogram:
            about = _geometry(config)
            num_patches, width = math.prod(about["grid"]), config.hidden_size
        else:
            num_patches, width = waveforms.num_frames(config, self.view().num_samples), config.conv_dim[-1]
            about = waveforms.about(config, self.view().sample_rate_hz)
        fields = [
            Field(
                name="patch_embeddings",
                shape=(num_patches, width),
                encoding=encodings.patch_embeddings,
                about=about,
            ),
            Field(
                name="patch_features",
                shape=(num_patches, config.hidden_size),
                encoding=encodings.patch_features,
                about=about,
            ),
            Field(
                name="features",
                shape=(self._features_width,),
                encoding=encodings.features,
                about={"pooling": self._pooling},
            ),
        ]
        if self._is_classifier:
            logits = {"multi_label": True} if self._is_multi_label else {"temperature": 1.0}
            fields.append(Field(name="logits", shape=(config.num_labels,), encoding=encodings.logits, about=logits))
        if not self._is_spectrogram:
            fields.append(Field(name="length", shape=(), encoding=Int32()))
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Hash of the model's files, wherever they lie, preprocessing, duration, precision."""
        return {
            "kind": self.kind,
            "weights": weights.folder_fingerprint(self._folder),
            "preprocessing": waveforms.preprocessing(self._extractor),
            "duration_s": self.duration_s,
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """A line if the model does not hear all of `duration_s`."""
        if not self._is_spectrogram:
            return ()
        heard_s = WINDOW_S + (self._config.max_length - 1) * HOP_S
        if self.duration_s < heard_s + HOP_S:
            return ()
        return (f"duration_s is {self.duration_s:g}, and the model hears the first {heard_s:.2f} s of these",)

    def build(self, device: str) -> _WaveformModel | _SpectrogramModel:
        """The model with its weights, on `device`."""
        return (_SpectrogramModel if self._is_spectrogram else _WaveformModel)(self, device)

    @property
    def _is_spectrogram(self) -> bool:
        return bool(self._config.model_type == SPECTROGRAM)

    @property
    def _is_classifier(self) -> bool:
        names = self._config.architectures or []
        return any(name.endswith(("ForSequenceClassification", "ForAudioClassification")) for name in names)

    @property
    def _is_multi_label(self) -> bool:
        if self.multi_label is not None:
            return self.multi_label
        return bool(self._config.problem_type == "multi_label_classification")

    @property
    def _features_width(self) -> int:
        projected = self._is_classifier and not self._is_spectrogram
        return int(self._config.classifier_proj_size if projected else self._config.hidden_size)

    @property
    def _pooling(self) -> str:
        if self._is_spectrogram:
            return "mean of the CLS and distillation tokens"
        return "mean over frames" + (", projected: what the classifier is given" if self._is_classifier else "")

    @cached_property
    def _folder(self) -> Path:
        return weights.find_folder(self.model)

    @cached_property
    def _config(self) -> Any:
        config = pretrained.read_config(self._folder, self.model)
        if config.model_type not in FAMILIES:
            raise ConfigError(
                f"model {self.model} is a {config.model_type!r}; huggingface_audio knows {', '.join(FAMILIES)}"
            )
        if getattr(config, "add_adapter", False):
            raise ConfigError(
                f"model {self.model}: add_adapter is true, and an adapter's frames are not the encoder's"
            )
        return config

    @cached_property
    def _extractor(self) -> Any:
        extractor = waveforms.read_extractor(self._folder, self.model)
        if self._is_spectrogram:
            theirs = (extractor.max_length, extractor.num_mel_bins)
            own = (self._config.max_length, self._config.num_mel_bins)
            if theirs != own:
                raise ConfigError(
                    f"model {self.model}: its preprocessor_config.json makes {theirs[0]} frames of {theirs[1]} "
                    f"bands, and its config.json takes {own[0]} of {own[1]}"
                )
        return extractor

    def _load(self) -> Any:
        auto_class = "AutoModelForAudioClassification" if self._is_classifier else "AutoModel"
        return pretrained.load(auto_class, self._folder, self.model, unused=waveforms.UNUSED)


class _WaveformModel:
    def __init__(self, config: HuggingFaceAudio, device: str) -> None:
        self._device = device
        self._batches = waveforms.Batches(config._extractor, config._config, config.fields())
        self._model = config._load().to(device)
        waveforms.keep_positions_exact(self._model, device)
        self._is_classifier = config._is_classifier
        self._frames = Caught(self._model.base_model, {"patch_embeddings": "feature_extractor", "states": ""})
        self._projected = Caught(self._model, {"projected": "projector"} if self._is_classifier else {})
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[waveforms.Sound]) -> dict[str, npt.NDArray[Any]]:
        """n sounds, float32 [samples] -> the fields float32 [n, ...], frames zero after `length` int32 [n]."""
        return self._batches.run(views, self._outputs)

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}

    def _outputs(self, sounds: torch.Tensor) -> dict[str, torch.Tensor]:
        import torch

        self._frames.clear()
        with torch.inference_mode(), self._autocast:
            made = self._model(sounds.to(self._device))
        states = self._frames["states"].last_hidden_state
        outputs = {
            "patch_embeddings": self._frames["patch_embeddings"].transpose(1, 2),
            "patch_features": states,
            "features": (self._projected["projected"] if self._is_classifier else states).float().mean(dim=1),
        }
        return outputs | ({"logits": made.logits} if self._is_classifier else {})


class _SpectrogramModel:
    def __init__(self, config: HuggingFaceAudio, device: str) -> None:
        self._device, self._extractor = device, config._extractor
        self._names = [field.name for field in config.fields()]
        self._model = config._load().to(device)
        self._is_classifier = config._is_classifier
        self._caught = Caught(
            self._model.base_model, {"patch_embeddings": "embeddings.patch_embeddings", "states": ""}
        )
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[waveforms.Sound]) -> dict[str, npt.NDArray[Any]]:
        """n sounds, float32 [samples] -> the fields float32 [n, ...]."""
        import torch

        # The library makes no spectrogram of less than one frame.
        rate_hz = self._extractor.sampling_rate
        fewest = round(WINDOW_S * rate_hz)
        sounds = [np.pad(view, (0, max(0, fewest - len(view)))) for view in views]
        spectrograms = self._extractor(sounds, sampling_rate=rate_hz, return_tensors="pt").input_values
        self._caught.clear()
        with torch.inference_mode(), self._autocast:
            made = self._model(spectrograms.to(self._device))
        states = self._caught["states"]
        outputs = {
            "patch_embeddings": self._caught["patch_embeddings"],
            "patch_features": states.last_hidden_state[:, NUM_PREFIX:],
            "features": states.pooler_output,
        }
        return to_numpy(outputs | ({"logits": made.logits} if self._is_classifier else {}), self._names)

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}


def _geometry(config: Any) -> dict[str, Any]:
    """Of AST's patches, in bands and frames; the tokens in front of them are not among the rows."""
    patch, stride = config.patch_size, [config.frequency_stride, config.time_stride]
    sizes = (config.num_mel_bins, config.max_length)
    return {
        "axes": ["frequency", "time"],
        "grid": [(size - patch) // step + 1 for size, step in zip(sizes, stride, strict=True)],
        "patch_size": [patch, patch],
        "stride": stride,
        "num_prefix_tokens": NUM_PREFIX,
        "num_cls_tokens": 1,
        "num_distillation_tokens": 1,
    }
