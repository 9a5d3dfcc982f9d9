"""Sounds as patches of their log-mel spectrogram: a frozen modality encoder without weights.

Frames and filters as YAMNet has them (25 ms Hann windows every 10 ms, HTK mel bands, log(mel + 0.001)); a patch is
`patch_frames` frames of all bands, one token after the other in time.
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

LOG_OFFSET = 0.001


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

    def build(self, device: str) -> _LogMelModel:
        """A callable on `device`."""
        return _LogMelModel(self, device)

    def _num_patches(self, num_samples: int) -> int:
        num_frames = 1 + num_samples // round(self.hop_s * self.sample_rate_hz)
        return max(1, num_frames // self.patch_frames)


class _LogMelModel:
    def __init__(self, config: LogMel, device: str) -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        self._config, self._device = config, device
        self._window_samples = round(config.window_s * config.sample_rate_hz)
        self._fft_size = 1 << (self._window_samples - 1).bit_length()
        filters = mel_filter_bank(
            num_frequency_bins=self._fft_size // 2 + 1,
            num_mel_filters=config.num_bands,
            min_frequency=config.lowest_hz,
            max_frequency=min(config.highest_hz, config.sample_rate_hz / 2),
            sampling_rate=config.sample_rate_hz,
            mel_scale="htk",
        )
        self._filters = torch.from_numpy(filters).float().to(device)
        self._window = torch.hann_window(self._window_samples, device=device)

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
        spectrum = torch.stft(
            torch.from_numpy(sounds).to(self._device),
            n_fft=self._fft_size,
            hop_length=round(config.hop_s * config.sample_rate_hz),
            win_length=self._window_samples,
            window=self._window,
            return_complex=True,
        ).abs()
        mel = torch.log(spectrum.transpose(1, 2) @ self._filters + LOG_OFFSET)
        patches = mel[:, : num_patches * config.patch_frames].reshape(len(views), num_patches, width).cpu().numpy()
        patches[np.arange(num_patches) >= lengths[:, None]] = 0
        return {"patch_embeddings": patches, "length": lengths}
