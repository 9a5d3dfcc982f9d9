"""Frozen sound encoders for ONNX: samples float32 [B, n] in; spectrograms are made inside of the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from encoders import waveforms
from encoders.data2vec import Data2VecAudio
from encoders.huggingface_audio import HuggingFaceAudio
from encoders.log_mel import LogMel
from encoders.outputs import Caught
from encoders.yamnet import FRAME_SAMPLES, PATCH_FRAMES, PATCH_SAMPLES, Yamnet, _classified
from trainer.export.frozen import save_transformers
from trainer.export.portable import Portable, no_weights, require_length

SEQUENCES = ("patch_embeddings", "patch_features")


def of_patches(encoder: LogMel, has_length: bool, name: str) -> Portable:
    """Patches of a log-mel spectrogram."""
    require_length(has_length, name)
    return _of_fixed(encoder, Patches(encoder))


def of_windows(encoder: Yamnet, field: str, has_length: bool, name: str) -> Portable:
    """YAMNet, over all windows of a sound."""
    if field not in ("patch_embeddings", "features"):
        raise ConfigError(f"{name}: YAMNet's {field} can't be exported as input")
    if field == "patch_embeddings":
        require_length(has_length, name)
    return _of_fixed(encoder, Windows(encoder, field))


def of_waveforms(encoder: HuggingFaceAudio | Data2VecAudio, field: str, has_length: bool, name: str) -> Portable:
    """wav2vec2's family, which hears each sound at its own length."""
    if isinstance(encoder, HuggingFaceAudio) and encoder._is_spectrogram:
        raise ConfigError(
            f"{name} can't be exported: the Audio Spectrogram Transformer's spectrogram has no portable form"
        )
    if field not in (*SEQUENCES, "features", "logits"):
        raise ConfigError(f"{name}: data2vec's {field} are what a student learns, and can't be exported as input")
    if field in SEQUENCES:
        require_length(has_length, name)
    view, extractor, config = encoder.view(), encoder._extractor, encoder._config
    fewest = waveforms._samples_of(config, waveforms._fewest_frames(config))
    return Portable(
        frozen=Waveforms(encoder, field),
        preprocessing={
            **_heard(view),
            "num_samples": None,
            "normalises": bool(extractor.do_normalize),
            "fewest_samples": fewest,
        },
        inputs=("sounds",),
        example=lambda n: (torch.randn(n, view.num_samples, generator=torch.Generator().manual_seed(0)),),
        axes={"sounds": {1: ("samples", fewest, view.num_samples)}},
        save=partial(save_transformers, encoder._folder),
    )


class Patches(nn.Module):
    """`LogMel` over a batch padded with silence."""

    def __init__(self, encoder: LogMel) -> None:
        super().__init__()
        self._spectrogram = encoder.build("cpu")._spectrogram
        self._hop, self._frames = round(encoder.hop_s * encoder.sample_rate_hz), encoder.patch_frames
        self._num_patches, self._width = encoder.fields()[0].shape

    def forward(self, sounds: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, samples] and int64 [B], how many are the sound -> float [B, T, D] and int64 [B]."""
        frames = self._spectrogram(sounds)[:, : self._num_patches * self._frames]
        num_patches = (1 + length // self._hop) // self._frames
        return frames.reshape(-1, self._num_patches, self._width), num_patches.clamp(1, self._num_patches)


class Windows(nn.Module):
    """`Yamnet`: the network over every window, silent ones after the sound too, which count for nothing."""

    def __init__(self, encoder: Yamnet, field: str) -> None:
        super().__init__()
        built = encoder.build("cpu")
        self.network, self._spectrogram, self._field = built._model, built._spectrogram, field
        self._hop = encoder._hop_frames
        self._num_windows = encoder._num_windows(encoder.view().num_samples)
        num_samples = PATCH_SAMPLES + (self._num_windows - 1) * self._hop * FRAME_SAMPLES
        self._num_silent = num_samples - encoder.view().num_samples

    def forward(self, sounds: Tensor, length: Tensor) -> tuple[Tensor, Tensor | None]:
        """Float [B, samples] and int64 [B], how many are the sound -> float [B, W, D] and int64 [B], or [B, D]."""
        frames = self._spectrogram(nn.functional.pad(sounds, (0, self._num_silent)))
        windows = frames.unfold(1, PATCH_FRAMES, self._hop).transpose(2, 3).flatten(0, 1)
        made = _classified(self.network, windows[:, None])["features"]
        made = made.reshape(-1, self._num_windows, made.shape[1])
        step = self._hop * FRAME_SAMPLES
        num_real = 1 + ((length - PATCH_SAMPLES).clamp(min=0) + step - 1) // step
        if self._field == "patch_embeddings":
            return made, num_real
        is_real = torch.arange(self._num_windows) < num_real[:, None]
        return (made * is_real[..., None]).sum(1) / num_real[:, None], None


class Waveforms(nn.Module):
    """A model of wav2vec2's family on sounds of one length."""

    def __init__(self, encoder: HuggingFaceAudio | Data2VecAudio, field: str) -> None:
        super().__init__()
        self.network, self._field = _network(encoder), field
        self._is_classifier = isinstance(encoder, HuggingFaceAudio) and encoder._is_classifier
        self._states = Caught(self.network.base_model, {"states": ""})
        self._projected = Caught(self.network, {"projected": "projector"} if self._is_classifier else {})

    def forward(self, sounds: Tensor) -> tuple[Tensor, Tensor | None]:
        """Float [B, samples] -> float [B, T, D] and int64 [B], or [B, D]."""
        if self._field == "patch_embeddings":
            return _all_real(self.network.base_model.feature_extractor(sounds).transpose(1, 2))
        made = self.network(sounds)
        states = self._states["states"].last_hidden_state
        if self._field == "patch_features":
            return _all_real(states)
        if self._field == "features":
            return (self._projected["projected"] if self._is_classifier else states).mean(dim=1), None
        return made.logits, None


def _all_real(frames: Tensor) -> tuple[Tensor, Tensor]:
    return frames, torch.full_like(frames[:, 0, 0], frames.shape[1], dtype=torch.int64)


def _network(encoder: HuggingFaceAudio | Data2VecAudio) -> Any:
    from encoders import pretrained

    if isinstance(encoder, HuggingFaceAudio):
        return encoder._load()
    return pretrained.load("AutoModel", encoder._folder, encoder.model, unused=waveforms.UNUSED)


def _heard(view: Any) -> dict[str, Any]:
    return {"kind": "samples", "sample_rate_hz": view.sample_rate_hz, "duration_s": view.duration_s}


def _of_fixed(encoder: LogMel | Yamnet, frozen: nn.Module) -> Portable:
    view = encoder.view()

    def example(n: int) -> tuple[Tensor, Tensor]:
        sounds = torch.randn(n, view.num_samples, generator=torch.Generator().manual_seed(0)) * 0.1
        lengths = view.num_samples // (torch.arange(n) + 1)
        return torch.where(torch.arange(view.num_samples) < lengths[:, None], sounds, 0.0), lengths

    return Portable(
        frozen=frozen,
        preprocessing={**_heard(view), "num_samples": view.num_samples},
        inputs=("sounds", "length"),
        example=example,
        axes={},
        save=no_weights,
    )
