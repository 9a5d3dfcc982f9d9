"""Log-mel spectrograms: log(mel + 0.001) of the magnitudes of Hann windows, on triangles of the HTK mel scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOG_OFFSET = 0.001


class Spectrogram:
    """The frames of sounds, on a device.

    `centred` frames have their middle at 0, one hop, two hops...; the sound is mirrored at its ends. Others lie
    within the sound: the first begins with it. `mel_triangles` rise and fall with the mel, as TensorFlow's do;
    others with the frequency.
    """

    def __init__(
        self,
        *,
        sample_rate_hz: int,
        window_s: float,
        hop_s: float,
        num_bands: int,
        lowest_hz: float,
        highest_hz: float,
        centred: bool,
        mel_triangles: bool,
        device: str,
    ) -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        self._num_window, self._num_hop = round(window_s * sample_rate_hz), round(hop_s * sample_rate_hz)
        self._fft_size = 1 << (self._num_window - 1).bit_length()
        self._centred = centred
        filters = mel_filter_bank(
            num_frequency_bins=self._fft_size // 2 + 1,
            num_mel_filters=num_bands,
            min_frequency=lowest_hz,
            max_frequency=min(highest_hz, sample_rate_hz / 2),
            sampling_rate=sample_rate_hz,
            mel_scale="htk",
            triangularize_in_mel_space=mel_triangles,
        )
        self._filters = torch.from_numpy(filters).float().to(device)
        self._window = torch.hann_window(self._num_window, device=device)

    def __call__(self, sounds: torch.Tensor) -> torch.Tensor:
        """Float32 [n, samples] -> float32 [n, frames, num_bands]."""
        import torch

        # The window stands in the middle of what is transformed, so that the first one begins at sample 0.
        margin = 0 if self._centred else (self._fft_size - self._num_window) // 2
        spectrum = torch.stft(
            torch.nn.functional.pad(sounds, (margin, margin)),
            n_fft=self._fft_size,
            hop_length=self._num_hop,
            win_length=self._num_window,
            window=self._window,
            center=self._centred,
            return_complex=True,
        ).abs()
        return torch.log(spectrum.transpose(1, 2) @ self._filters + LOG_OFFSET)
