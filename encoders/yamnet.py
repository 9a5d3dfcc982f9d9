"""YAMNet: a convolutional classifier of timm over windows of 0.96 s of a sound's log-mel spectrogram.

As published (tensorflow/models, research/audioset/yamnet): 16 kHz; 25 ms periodic Hann windows every 10 ms, the
first from the sound's start; magnitudes of 512 points; 64 mel bands of 125 to 7500 Hz; log(mel + 0.001); patches of
96 frames, one every `hop_s`. The sound has silence after it up to the end of its last patch. Each class has its own
sigmoid; a sound's scores are the means of its patches'.
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

from contract import fingerprint
from contract.encodings import Float16, FloatEncoding, Int32, LogitsEncoding
from contract.errors import ConfigError
from contract.schema import Field
from contract.views import AudioView
from encoders import weights
from encoders.outputs import Precision, autocast, take, to_numpy
from encoders.spectrogram import Spectrogram

if TYPE_CHECKING:
    import torch

SAMPLE_RATE_HZ = 16000
WINDOW_S, FRAME_S = 0.025, 0.010
NUM_BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 125.0, 7500.0
PATCH_FRAMES = 96
FRAME_SAMPLES = round(FRAME_S * SAMPLE_RATE_HZ)
PATCH_SAMPLES = round((PATCH_FRAMES - 1) * FRAME_SAMPLES + WINDOW_S * SAMPLE_RATE_HZ)
DEFAULT = ("patch_embeddings", "features", "logits", "length")
# Scores no nearer to 0 and 1 than this, so that their log-odds stay within 14.
SMALLEST_SCORE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored."""

    patch_embeddings: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    features: FloatEncoding = Float16()  # noqa: RUF009
    logits: LogitsEncoding = Float16()  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Yamnet:
    """A classifier of timm for one channel of 96 frames x 64 bands, with weights from the file `checkpoint`.

    The defaults are YAMNet's own architecture and classes, with TensorFlow's padding, which its weights need.
    `model` and `model_args` are timm's; the sound's first `duration_s` seconds are heard.
    """

    kind: Literal["yamnet"] = "yamnet"
    checkpoint: str
    model: str = "mobilenetv1_100"
    model_args: dict[str, Any] = field(default_factory=lambda: {"act_layer": "relu", "pad_type": "same"})
    num_classes: PositiveInt = 521
    duration_s: PositiveFloat = 10.0
    hop_s: PositiveFloat = 0.48
    take: tuple[str, ...] | None = None
    precision: Precision = "float32"
    batch_size: PositiveInt = 16
    encodings: Encodings = field(default_factory=Encodings)

    def __post_init__(self) -> None:
        """Refuse a hop between two frames."""
        if self._hop_frames < 1 or not math.isclose(self._hop_frames * FRAME_S, self.hop_s):
            raise ConfigError(f"hop_s: {self.hop_s} is not a multiple of the frames' {FRAME_S} s")

    def view(self) -> AudioView:
        """The start of the sound, mono."""
        return AudioView(sample_rate_hz=SAMPLE_RATE_HZ, duration_s=self.duration_s)

    def fields(self) -> tuple[Field, ...]:
        """`patch_embeddings` [W, D] of the windows, `features` [D] their mean, `logits` [C], and `length`, windows.

        `logits` are the log-odds of the mean scores.
        """
        import torch

        with torch.device("meta"):
            outputs = _classified(self._create(), torch.zeros(1, 1, PATCH_FRAMES, NUM_BANDS))
        num_windows, width = self._num_windows(self.view().num_samples), outputs["features"].shape[1]
        fields = (
            Field(
                name="patch_embeddings",
                shape=(num_windows, width),
                encoding=self.encodings.patch_embeddings,
                about={"window_s": PATCH_FRAMES * FRAME_S, "hop_s": self.hop_s},
            ),
            Field(
                name="features",
                shape=(width,),
                encoding=self.encodings.features,
                about={"pooling": "mean over windows"},
            ),
            Field(
                name="logits",
                shape=(self.num_classes,),
                encoding=self.encodings.logits,
                about={"multi_label": True, "pooling": "log-odds of the mean score over windows"},
            ),
            Field(name="length", shape=(), encoding=Int32()),
        )
        return take(fields, self.take, DEFAULT)

    def recipe(self) -> Mapping[str, Any]:
        """Model, arguments, hash of the weights file, duration, hop, precision."""
        return {
            "kind": self.kind,
            "model": self.model,
            "model_args": self.model_args,
            "num_classes": self.num_classes,
            "weights": fingerprint.of_file(self._weights),
            "duration_s": self.duration_s,
            "hop_s": self.hop_s,
            "precision": self.precision,
        }

    def notes(self) -> tuple[str, ...]:
        """A line if the windows do not lie as the published ones do."""
        own = Yamnet.hop_s
        return () if self.hop_s == own else (f"hop_s is {self.hop_s:g}, the model's own is {own:g}",)

    def build(self, device: str) -> _YamnetModel:
        """The model with its weights, on `device`."""
        return _YamnetModel(self, device)

    @property
    def _hop_frames(self) -> int:
        return round(self.hop_s / FRAME_S)

    @cached_property
    def _weights(self) -> Path:
        return weights.find_file(self.checkpoint)

    def _num_windows(self, num_samples: int) -> int:
        """Patches until each sample is in one."""
        return 1 + math.ceil(max(0, num_samples - PATCH_SAMPLES) / (self._hop_frames * FRAME_SAMPLES))

    def _create(self) -> torch.nn.Module:
        import timm

        try:
            model: torch.nn.Module = timm.create_model(
                self.model, pretrained=False, in_chans=1, num_classes=self.num_classes, **self.model_args
            )
        except (TypeError, RuntimeError, ValueError) as error:
            raise ConfigError(f"timm model {self.model} with model_args {self.model_args}: {error}") from error
        return model.eval().requires_grad_(False)


class _YamnetModel:
    def __init__(self, config: Yamnet, device: str) -> None:
        self._config, self._device = config, device
        self._names = [field.name for field in config.fields()]
        self._model = config._create()
        weights.load_state(self._model, config._weights)
        self._model.to(device)
        self._spectrogram = Spectrogram(
            sample_rate_hz=SAMPLE_RATE_HZ,
            window_s=WINDOW_S,
            hop_s=FRAME_S,
            num_bands=NUM_BANDS,
            lowest_hz=LOWEST_HZ,
            highest_hz=HIGHEST_HZ,
            centred=False,
            mel_triangles=True,
            device=device,
        )
        self._autocast = autocast(device, config.precision)

    def __call__(self, views: Sequence[npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[Any]]:
        """n sounds, float32 [samples] -> the fields float32 [n, ...], windows zero after `length` int32 [n]."""
        import torch

        lengths = torch.tensor([self._config._num_windows(len(view)) for view in views], device=self._device)
        num_windows = self._config._num_windows(self._config.view().num_samples)
        is_real = torch.arange(num_windows, device=self._device) < lengths[:, None]
        with torch.inference_mode():
            # The real windows of all sounds, one sound after the other.
            windows = self._windows(views, num_windows)[is_real]
            with self._autocast:
                made = _classified(self._model, windows.unsqueeze(1))
            embeddings = torch.zeros(*is_real.shape, made["features"].shape[1], device=self._device)
            embeddings[is_real] = made["features"].float()
            per_sound = torch.split(made["logits"].double(), lengths.tolist())
            scores = [logits.sigmoid().mean(dim=0) for logits in per_sound]
            outputs = {
                "patch_embeddings": embeddings,
                "features": embeddings.sum(dim=1) / lengths[:, None],
                "logits": torch.stack(scores).logit(eps=SMALLEST_SCORE),
                "length": lengths.int(),
            }
        return to_numpy(outputs, self._names)

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}

    def _windows(self, views: Sequence[npt.NDArray[np.float32]], num_windows: int) -> torch.Tensor:
        """The log-mel patches float32 [n, num_windows, PATCH_FRAMES, NUM_BANDS] of sounds and the silence after."""
        import torch

        hop = self._config._hop_frames
        sounds = np.zeros((len(views), PATCH_SAMPLES + (num_windows - 1) * hop * FRAME_SAMPLES), np.float32)
        for row, view in enumerate(views):
            sounds[row, : len(view)] = view
        frames = self._spectrogram(torch.from_numpy(sounds).to(self._device))
        return frames.unfold(1, PATCH_FRAMES, hop).transpose(2, 3)


def _classified(model: torch.nn.Module, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Float [m, 1, PATCH_FRAMES, NUM_BANDS] -> features [m, D], logits [m, C]."""
    final = model.forward_features(windows)  # type: ignore[operator]
    return {
        "features": model.forward_head(final, pre_logits=True),  # type: ignore[operator]
        "logits": model.forward_head(final),  # type: ignore[operator]
    }
