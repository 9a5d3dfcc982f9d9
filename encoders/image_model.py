"""The fields of an image model, whichever library it is of, and what is made of them once it is built.

    patch_embeddings [T, D]    the frozen modality encoder: patches before any block, without CLS and positions
    patch_features   [T, D]    the patches that the last layer gives, after its norm
    cls [D], registers [R, D]  the last layer's other tokens, where the model has them
    features [D]               pooled
    logits [C]                 of a classifier

Patches go row by row. All are of one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from contract.encodings import Float16, FloatEncoding, LogitsEncoding, PatchEncoding, Pixels
from contract.encodings.pixels import folded
from contract.errors import ConfigError
from contract.schema import Field
from encoders.image_processor import Processing
from encoders.outputs import Precision, autocast, to_numpy

if TYPE_CHECKING:
    import torch

NAMES = ("patch_embeddings", "patch_features", "cls", "registers", "features", "logits")
DEFAULT = ("patch_embeddings", "features", "logits")


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """How each field is stored."""

    patch_embeddings: PatchEncoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    patch_features: FloatEncoding = Float16()  # noqa: RUF009
    cls: FloatEncoding = Float16()  # noqa: RUF009
    registers: FloatEncoding = Float16()  # noqa: RUF009
    features: FloatEncoding = Float16()  # noqa: RUF009
    logits: LogitsEncoding = Float16()  # noqa: RUF009

    @property
    def stores_pixels(self) -> bool:
        """Whether patch embeddings are stored as the pixels that they are a linear map of."""
        return isinstance(self.patch_embeddings, Pixels)


class Outputs(Protocol):
    """A model that gives fields by name."""

    @property
    def about(self) -> dict[str, dict[str, Any]]:
        """By field, what a reader needs beside the values; known after a call."""

    def __call__(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Float [n, 3, h, w] -> of the named fields those that the model has, [n, ...]."""

    @property
    def projection(self) -> torch.nn.Module | None:
        """What makes the patch embeddings by itself, if a module does."""


class ImageModel:
    """A built image model: uint8 views in, float32 fields out."""

    def __init__(
        self,
        outputs: Outputs,
        *,
        names: Sequence[str],
        processing: Processing,
        precision: Precision,
        device: str,
        stores_pixels: bool,
    ) -> None:
        self._outputs, self._names = outputs, tuple(names)
        self._processing, self._device = processing, device
        self._stores_pixels = stores_pixels and "patch_embeddings" in names
        self._autocast = autocast(device, precision)

    def __call__(self, views: Sequence[npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[Any]]:
        """n views, uint8 [h, w, 3] -> {field: float32 [n, ...]}, and "patch_embeddings.pixels" if stored."""
        import torch

        images = self._processing.normalise(views, self._device)
        with torch.inference_mode(), self._autocast:
            outputs = self._outputs(images, self._names)
        fields = to_numpy(outputs, self._names)
        return fields | ({"patch_embeddings.pixels": np.stack(views)} if self._stores_pixels else {})

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """The patch embedding, the pixels' normalisation folded in, if pixels are stored."""
        if not self._stores_pixels:
            return {}
        projection: Any = self._outputs.projection
        weight = projection.weight.float().cpu().numpy()
        bias = (
            np.zeros(len(weight), np.float32) if projection.bias is None else projection.bias.float().cpu().numpy()
        )
        # In units of pixel / 255, as the encoding has them.
        levels = 255 * self._processing.rescale
        mean, std = (np.array(each, np.float32) / levels for each in (self._processing.mean, self._processing.std))
        return {f"patch_embeddings.{name}": array for name, array in folded(weight, bias, mean, std).items()}


def described(
    outputs: Outputs, processing: Processing, encodings: Encodings, names: Collection[str], model: str
) -> tuple[Field, ...]:
    """The fields that a model on the meta device has, of the named ones; `model` is its name for errors."""
    import torch

    view = processing.view
    try:
        made = outputs(torch.zeros(1, 3, view.height, view.width, device="meta"), names)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        size = [3, view.height, view.width]
        raise ConfigError(f"{model} does not take inputs of {size}: {' '.join(str(error).split())}") from error
    stored: dict[str, Any] = {name: getattr(encodings, name) for name in made}
    if encodings.stores_pixels and "patch_embeddings" in made:
        _require_linear(outputs.projection, processing, model)
        stored["patch_embeddings"] = Pixels(height=view.height, width=view.width)
    return tuple(
        Field(
            name=name, shape=tuple(made[name].shape[1:]), encoding=stored[name], about=outputs.about.get(name, {})
        )
        for name in names
        if name in made
    )


def split(tokens: torch.Tensor, num_prefix: int, num_registers: int, has_cls: bool) -> dict[str, torch.Tensor]:
    """The last layer's tokens [n, P + T, D] by name: patches, CLS first of the prefix, registers last of it."""
    parts = {"patch_features": tokens[:, num_prefix:]}
    if has_cls:
        parts["cls"] = tokens[:, 0]
    if num_registers:
        parts["registers"] = tokens[:, num_prefix - num_registers : num_prefix]
    return parts


def as_tokens(maps: torch.Tensor) -> torch.Tensor:
    """Feature maps [n, D, h, w] as tokens [n, h * w, D]."""
    return maps.flatten(2).transpose(1, 2)


def grid_of(num_tokens: int, height: int, width: int) -> tuple[int, ...]:
    """Rows and columns of tokens that cover an image evenly; (T,) if there are none."""
    rows = max(1, round(math.sqrt(num_tokens * height / width)))
    return (rows, num_tokens // rows) if num_tokens % rows == 0 else (num_tokens,)


def geometry(grid: Sequence[int], size: Sequence[int], known: Sequence[Sequence[int]]) -> dict[str, Any]:
    """`grid` and `patch_size`, in pixels of a view of that size: one of the `known` that fits, or the nearest."""
    if len(grid) != 2:
        return {"grid": list(grid)}
    for patch in known:
        if all(n in (side // p, -(-side // p)) for n, side, p in zip(grid, size, patch, strict=True)):
            return {"grid": list(grid), "patch_size": list(patch)}
    return {"grid": list(grid), "patch_size": [round(side / n) for n, side in zip(grid, size, strict=True)]}


def _require_linear(projection: Any, processing: Processing, model: str) -> None:
    """Refuse to store pixels for tokens that are not a linear map of one patch each."""
    import torch

    view = processing.view
    if not (
        isinstance(projection, torch.nn.Conv2d)
        and projection.weight.shape[1] == 3
        and projection.kernel_size == projection.stride
        and projection.kernel_size[0] == projection.kernel_size[1]
        and projection.padding == (0, 0)
        and view.height % projection.kernel_size[0] == view.width % projection.kernel_size[0] == 0
        and not processing.flipped
    ):
        raise ConfigError(
            f"encodings.patch_embeddings: the tokens of {model} are not a linear map of square patches (as a plain "
            "ViT's are); choose another encoding than pixels"
        )
