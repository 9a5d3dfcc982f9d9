"""The view's pixels, for patch embeddings that are a linear map of them: half float16's bytes, without loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt

from contract.encodings.encoding import Array, ArrayEncoding, Layout, Shape, cast


@dataclass(frozen=True, kw_only=True)
class Pixels(ArrayEncoding):
    """A uint8 view [height, width, 3]; decoding applies the frozen patch embedding of a ViT.

    The constants are `weight` float32 [D, p, p, 3] and `bias` float32 [D], into which the normalisation of the
    pixels is folded: token t = sum over its patch of weight x pixel + bias. `height` and `width` are the view's,
    filled in by the encoder.
    """

    kind: Literal["pixels"] = "pixels"
    height: NonNegativeInt = 0
    width: NonNegativeInt = 0
    source: ClassVar[str] = "pixels"
    constants: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def input(self, shape: Shape) -> Layout:
        """The view."""
        return "uint8", (self.height, self.width, 3)

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """`pixels` uint8 [height, width, 3]."""
        return {"pixels": self.input(shape)}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Uint8 [n, height, width, 3], as it is."""
        assert values.dtype == np.uint8, values.dtype
        return {"pixels": values}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Uint8 [n, height, width, 3] -> float32 [n, T, D], patches row by row."""
        weight = constants["weight"]
        dim, patch = weight.shape[0], weight.shape[1]
        pixels = cast(stored["pixels"], "float32", xp)
        n, rows, columns = len(pixels), self.height // patch, self.width // patch
        patches = pixels.reshape(n, rows, patch, columns, patch, 3).swapaxes(2, 3)
        flat = patches.reshape(n, rows * columns, patch * patch * 3)
        return flat @ weight.reshape(dim, -1).T + constants["bias"]


def folded(weight: Array, bias: Array, mean: Array, std: Array) -> dict[str, Array]:
    """The constants from a convolution [D, 3, p, p] with its bias [D], which takes (pixel / 255 - mean) / std.

    In float64, so that folding costs no more than one rounding to float32.
    """
    exact = weight.astype(np.float64) / std.astype(np.float64)[:, None, None]
    shift = (exact * mean.astype(np.float64)[:, None, None]).sum(axis=(1, 2, 3))
    return {
        "weight": np.ascontiguousarray((exact / 255).transpose(0, 2, 3, 1), np.float32),
        "bias": (bias.astype(np.float64) - shift).astype(np.float32),
    }
