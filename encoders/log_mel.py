"""Sounds as patches of their log-mel spectrogram: a frozen modality encoder without weights.

Frames much as YAMNet has them (25 ms Hann windows every 10 ms, HTK mel bands, log(mel + 0.001)), but centred, and
triangles in hertz; a patch is `patch_frames` frames of all bands, one token after the other in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt

from contract.encodings import Float16, FloatEncoding, Int32
from contract.schema import Field
from contract.views import AudioView
from encoders.spectrogram import Spectrogram


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How the patches are stored."""

    patch_embeddings: FloatEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """Log-mel patches of the first `duration_s` seconds, at most `duration_s * 100 / patch_frames` of them."""

    kind: Literal["log_mel"] = "log_mel"
    sample_rate_hz: PositiveInt = 16000
    duration_s: PositiveFloat = 10.0
    window_s: PositiveFloat = 0.025
    hop_s: PositiveFloat = 0.010
    num_bands: PositiveInt = 64
    lowest_hz: PositiveFloat = 125.0
    highest_hz: PositiveFloat = 7500.0
    patch_frames: PositiveInt = 4
    batch_size: PositiveInt = 64
    encodings: Encodings = field(default_factory=Encodings)

    def view(self) -> AudioView:
        """The start of the sound, mono."""
        return AudioView(sample_rate_hz=self.sample_rate_hz, duration_s=self.duration_s)

    def fields(self) -> tuple[Field, ...]:
        """`patch_embeddings` [T, patch_frames * num_bands] and `length`, the patches that the sound fills."""
        shape = (self._num_patches(self.view().num_samples), self.patch_frames * self.num_bands)
        return (
            Field(
                name="patch_embeddings",
                shape=shape,
                encoding=self.encodings.patch_embeddings,
                about={"patch_frames": self.patch_frames, "num_bands": self.num_bands, "hop_s": self.hop_s},
            ),
            Field(name="length", shape=(), encoding=Int32()),
        )

    def recipe(self) -> Mapping[str, Any]:
        """Everything that can change a value."""
        tree = asdict(self)
        return {name: value for name, value in tree.items() if name not in ("batch_size", "encodings")}

    def notes(self) -> tuple[str, ...]:
        """There is no preprocessing of its own to override."""
        return ()

    def build(self, device: str) -> _LogMelModel:
        """A callable on `device`."""
        return _LogMelModel(self, device)

    def _num_patches(self, num_samples: int) -> int:
        num_frames = 1 + num_samples // round(self.hop_s * self.sample_rate_hz)
        return max(1, num_frames // self.patch_frames)


class _LogMelModel:
    def __init__(self, config: LogMel, device: str) -> None:
        self._config, self._device = config, device
        self._spectrogram = Spectrogram(
            sample_rate_hz=config.sample_rate_hz,
            window_s=config.window_s,
            hop_s=config.hop_s,
            num_bands=config.num_bands,
            lowest_hz=config.lowest_hz,
            highest_hz=config.highest_hz,
            centred=True,
            mel_triangles=False,
            device=device,
        )

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """None are needed."""
        return {}

    def __call__(self, views: Sequence[npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[Any]]:
        """n sounds, float32 [samples] -> patch_embeddings float32 [n, T, D], zero after `length` int32 [n]."""
        import torch

        config = self._config
        num_patches, width = config.fields()[0].shape
        sounds = np.zeros((len(views), config.view().num_samples), np.float32)
        for row, view in enumerate(views):
            sounds[row, : len(view)] = view
        lengths = np.array([min(num_patches, config._num_patches(len(view))) for view in views], np.int32)
        mel = self._spectrogram(torch.from_numpy(sounds).to(self._device))
        patches = mel[:, : num_patches * config.patch_frames].reshape(len(views), num_patches, width).cpu().numpy()
        patches[np.arange(num_patches) >= lengths[:, None]] = 0
        return {"patch_embeddings": patches, "length": lengths}
