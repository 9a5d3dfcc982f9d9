"""Frozen image encoders for ONNX: views uint8 [B, h, w, 3] in, normalised inside of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from encoders.clip import ClipImage
from encoders.data2vec import Data2VecImage
from encoders.huggingface_image import HuggingFaceImage
from encoders.image_processor import Processing
from encoders.timm_image import TimmImage
from trainer.export.frozen import save_timm, save_transformers
from trainer.export.portable import Portable

Encoder = TimmImage | HuggingFaceImage | ClipImage | Data2VecImage


def of_pixels(encoder: Encoder, field: str, name: str) -> Portable:
    """An image encoder of timm or transformers."""
    built: Any = encoder.build("cpu")
    processing: Processing = built._processing
    if isinstance(encoder, Data2VecImage):
        if field != "patch_embeddings":
            raise ConfigError(
                f"{name}: data2vec's {field} are what a student learns, and can't be exported as input"
            )
        network, outputs = built._model, partial(_data2vec_patches, built)
    else:
        network, outputs = built._outputs._model, partial(_field, built._outputs, field)
    view = processing.view
    return Portable(
        frozen=Frozen(network, outputs, processing),
        preprocessing={"kind": "pixels", **asdict(view)},
        inputs=("pixels",),
        example=partial(_example, view.height, view.width),
        axes={},
        save=partial(_save, encoder, network),
    )


class Frozen(nn.Module):
    """Normalise, then `outputs`, which runs `network`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, outputs: Callable[[Tensor], Tensor], processing: Processing) -> None:
        super().__init__()
        self.network, self._outputs = network, outputs
        self._flipped, self._levels = processing.flipped, 1 / processing.rescale
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(processing, name)).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        """Uint8 [B, h, w, 3] -> float [B, T, D] or [B, D]."""
        images = pixels.permute(0, 3, 1, 2)
        if self._flipped:
            images = images.flip(1)
        return self._outputs((images.float() / self._levels - self.mean) / self.std), None


def _field(outputs: Any, field: str, images: Tensor) -> Tensor:
    found: Tensor = outputs(images, (field,))[field]
    return found


def _data2vec_patches(built: Any, images: Tensor) -> Tensor:
    built._caught.clear()
    built._model(images)
    patches: Tensor = built._caught["patch_embeddings"][0]
    return patches


def _example(height: int, width: int, n: int) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator),)


def _save(encoder: Encoder, network: Any, folder: Path) -> str:
    if isinstance(encoder, TimmImage):
        return save_timm(encoder, network, folder)
    return save_transformers(encoder._folder, folder)
