"""Sounds for models that read samples (wav2vec2's family): each is heard at its own length, as if it were alone.

Padding would be heard: the group norm of wav2vec2's first layer takes its statistics over it, and the stacked
positional convolutions of data2vec carry what they make of it back into the last frames, mask or no mask. So only
sounds of equally many samples share a forward pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contract.errors import DataError
from contract.schema import Field
from encoders import weights

if TYPE_CHECKING:
    import torch

Sound = npt.NDArray[np.float32]

# The vector that stands for masked frames in training, which checkpoints without training's heads may lack.
UNUSED = (r"(.*\.)?masked_spec_embed$",)


def read_extractor(folder: Path, model: str) -> Any:
    """The model's own preprocessing, transformers' feature extractor; `model` is its name for errors."""
    from transformers import AutoFeatureExtractor

    try:
        with weights.quiet(), warnings.catch_warnings():
            # Of AST's 128 published bands a few are empty, as its authors' are.
            warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
            return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a broken file the library raises many kinds
        raise DataError(
            f"model {model}: no feature extractor can be made of {folder / 'preprocessor_config.json'}: "
            f"{weights.reason(error)}"
        ) from error


def keep_positions_exact(model: torch.nn.Module, device: str) -> None:
    """Keep grouped convolutions (of positions) out of half precision on a CPU.

    With AMX, oneDNN's are wrong for some shapes: torch 2.15, kernels 16 wide over 6 or 8 channels a group.
    """
    import torch

    if torch.device(device).type != "cpu":
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d) and module.groups > 1:
            module.forward = _in_float32(module.forward)  # type: ignore[assignment,method-assign]


def preprocessing(extractor: Any) -> dict[str, Any]:
    """The feature extractor's settings, as a JSON-able tree."""
    settings: dict[str, Any] = extractor.to_dict()
    return settings


def num_frames(config: Any, num_samples: int) -> int:
    """Frames that the convolutions make of so many samples, or of the fewest that they can make any of."""
    num_samples = max(num_samples, _samples_of(config, _fewest_frames(config)))
    for width, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_samples = (num_samples - width) // stride + 1
    return num_samples


def about(config: Any, sample_rate_hz: int) -> dict[str, Any]:
    """The geometry of the frames: what each of them hears, and how far they lie apart."""
    return {
        "frame_s": _samples_of(config, 1) / sample_rate_hz,
        "hop_s": math.prod(config.conv_stride) / sample_rate_hz,
    }


class Batches:
    """What a model with this feature extractor and configuration gives of sounds, as these fields."""

    def __init__(self, extractor: Any, config: Any, fields: Sequence[Field]) -> None:
        self._extractor, self._config, self._fields = extractor, config, fields

    def run(
        self, sounds: Sequence[Sound], outputs: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    ) -> dict[str, npt.NDArray[Any]]:
        """The fields [n, ...] of n sounds float32 [samples], frames zero after `length` int32 [n].

        `outputs` is called with preprocessed sounds of one length, float32 [m, samples], and gives the fields of
        these but `length`, with as many frames as they have. A sound too short for a frame has zeros after it.
        """
        import torch

        arrays: dict[str, npt.NDArray[Any]] = {
            field.name: np.zeros((len(sounds), *field.shape), np.float32) for field in self._fields
        }
        lengths = np.array([num_frames(self._config, len(sound)) for sound in sounds], np.int32)
        if "length" in arrays:
            arrays["length"] = lengths
        for rows in _equally_long(sounds):
            batch = np.stack([self._preprocessed(sounds[row]) for row in rows])
            made = outputs(torch.from_numpy(batch))
            for name in arrays.keys() - {"length"}:
                values = made[name].float().cpu().numpy()
                if values.ndim == 3:
                    arrays[name][rows, : lengths[rows[0]]] = values
                else:
                    arrays[name][rows] = values
        return arrays

    def _preprocessed(self, sound: Sound) -> Sound:
        """What the model takes of a sound, float32 [samples]."""
        (heard,) = self._extractor(
            sound, sampling_rate=self._extractor.sampling_rate, return_tensors="np"
        ).input_values
        missing = max(0, _samples_of(self._config, _fewest_frames(self._config)) - len(heard))
        return np.pad(heard, (0, missing)).astype(np.float32)


def _in_float32(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    def exact(values: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(values.float())

    return exact


def _equally_long(sounds: Sequence[Sound]) -> list[list[int]]:
    """The rows of the sounds, those of one length together."""
    rows: dict[int, list[int]] = {}
    for row, sound in enumerate(sounds):
        rows.setdefault(len(sound), []).append(row)
    return list(rows.values())


def _fewest_frames(config: Any) -> int:
    """SEW's encoder squeezes several frames into one."""
    return getattr(config, "squeeze_factor", 1)


def _samples_of(config: Any, num_frames: int) -> int:
    num_samples = num_frames
    for width, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        num_samples = (num_samples - 1) * stride + width
    return num_samples
