"""Images: decoded, turned upright, resized and cropped as the model's own evaluation transform does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from contract.views.item import Item, UndecodableError

CropMode = Literal["center", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """A crop of `height` x `width` out of an image resized to `1 / crop_pct` of that.

    The same arithmetic as timm's and torchvision's evaluation transforms on PIL images, pixel for pixel:
    `center` keeps the aspect ratio and cuts out the middle, `squash` does not keep it.
    """

    height: int
    width: int
    crop_pct: float = 1.0
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"

    def load(self, item: Item) -> npt.NDArray[np.uint8]:
        """Return the view, uint8 [height, width, 3], RGB."""
        try:
            with Image.open(item.file) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except FileNotFoundError as error:
            raise UndecodableError("the file is missing") from error
        except Exception as error:
            # What a broken file raises in PIL has no common parent: OSError, SyntaxError, struct.error and more.
            raise UndecodableError(
                f"not a readable image: {error}".replace(str(item.file), item.file.name)
            ) from error
        resized = image.resize(self._resized(*image.size), Image.Resampling[self.interpolation.upper()])
        left = round((resized.width - self.width) / 2.0)
        top = round((resized.height - self.height) / 2.0)
        return np.asarray(resized.crop((left, top, left + self.width, top + self.height)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, before the crop."""
        target_width, target_height = (math.floor(side / self.crop_pct) for side in (self.width, self.height))
        if self.crop_mode == "squash":
            return target_width, target_height
        if target_width == target_height:
            # torchvision.transforms.Resize(int): the short side becomes the target, the long one is rounded down.
            if width <= height:
                return target_width, int(target_width * height / width)
            return int(target_width * width / height), target_width
        # timm's ResizeKeepRatio, for models whose input is not square.
        ratio = min(height / target_height, width / target_width)
        return round(width / ratio), round(height / ratio)
