"""Images: decoded, turned upright, and cropped as the model's own evaluation transform does, or at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from contract.errors import ConfigError
from contract.views.augmentation import drawn
from contract.views.image_file import MAX_PIXELS, decode
from contract.views.item import Item, UndecodableError

CropMode = Literal["center", "squash"]
Rounding = Literal["nearest", "down"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

NUM_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """A random box of the image, perhaps mirrored, then brightness, contrast and saturation, in that order.

    The box covers `scale` of the area at a `ratio` of width to height; `flip` is a probability, and each factor of
    colour is uniform in 1 plus or minus its setting.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = (
        "top",
        "left",
        "height",
        "width",
        "flip",
        "brightness",
        "contrast",
        "saturation",
    )

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4

    def __post_init__(self) -> None:
        """Refuse ranges that no box and no factor of colour can have."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"image augmentation: scale {self.scale} is not a range above 0 and up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"image augmentation: ratio {self.ratio} is not a range above 0")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"image augmentation: flip {self.flip} is not a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"image augmentation: {name} {getattr(self, name)} is not at least 0 and below 1")

    def draw(self, generator: np.random.Generator, width: int, height: int) -> npt.NDArray[np.float32]:
        """Draw the `PARAMETERS` of one view, float32 [8].

        The box is in fractions of the upright image's `height` and `width`, so that models with inputs of
        different sizes see the same region; `flip` is 0 or 1.
        """
        top, left, box_height, box_width = self._box(generator, width, height)
        box = (top / height, left / width, box_height / height, box_width / width)
        flip = generator.random() < self.flip
        jitters = (self.brightness, self.contrast, self.saturation)
        colours = [generator.uniform(1 - jitter, 1 + jitter) for jitter in jitters]
        return np.array([*box, flip, *colours], np.float32)

    def _box(self, generator: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
        """Top, left, height and width in pixels, as torchvision's `RandomResizedCrop.get_params` draws them."""
        narrowest, widest = self.ratio
        for _ in range(NUM_TRIES):
            area = width * height * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(math.log(narrowest), math.log(widest)))
            box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = int(generator.integers(height - box_height, endpoint=True))
                left = int(generator.integers(width - box_width, endpoint=True))
                return top, left, box_height, box_width
        # The largest central box of a permitted ratio; one pixel at least, where torchvision may have none.
        box_width = max(1, min(width, round(height * widest)))
        box_height = max(1, min(height, round(width / narrowest)))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """A crop of `height` x `width` out of an image resized to `1 / crop_pct` of that.

    The same arithmetic as timm's and torchvision's evaluation transforms on PIL images, pixel for pixel:
    `center` keeps the aspect ratio and cuts out the middle, `squash` does not keep it. A middle that lies half a
    pixel off is rounded to the nearest, or down, as transformers does.
    """

    height: int
    width: int
    crop_pct: float = 1.0
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    rounding: Rounding = "nearest"

    def load(self, item: Item) -> npt.NDArray[np.uint8]:
        """Return the view, uint8 [height, width, 3], RGB."""
        return self._evaluation(decode(item))

    def load_views(
        self, item: Item, augmentation: ImageAugmentation, seed: int, num_views: int
    ) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
        """Return what `load` does and `num_views` augmentations of it, and their parameters.

        Each view is uint8 [height, width, 3]; the parameters are float32 [1 + num_views, 8], the first row zeros.
        """
        image = decode(item)
        parameters = drawn(augmentation, seed, item.id, num_views, *image.size)
        return [self.render(image, row) for row in parameters], parameters

    def replay(self, item: Item, parameters: npt.NDArray[np.float32]) -> list[npt.NDArray[np.uint8]]:
        """Return the views, uint8 [height, width, 3], that have these parameters, float32 [n, 8]."""
        image = decode(item)
        return [self.render(image, row) for row in parameters]

    def render(self, image: Image.Image, row: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the view of a decoded image, uint8 [height, width, 3], that has these parameters, float32 [8]."""
        if not row.any():
            return self._evaluation(image)
        top, left, height, width, flip, brightness, contrast, saturation = row.tolist()
        # Fractions are rounded: a far edge that comes to lie just outside the image is one that PIL refuses.
        right = min((left + width) * image.width, image.width)
        bottom = min((top + height) * image.height, image.height)
        box = (left * image.width, top * image.height, right, bottom)
        view = image.resize((self.width, self.height), self._resampling, box)
        if flip:
            view = ImageOps.mirror(view)
        if brightness != 1.0:
            view = ImageEnhance.Brightness(view).enhance(brightness)
        if contrast != 1.0:
            view = ImageEnhance.Contrast(view).enhance(contrast)
        if saturation != 1.0:
            view = ImageEnhance.Color(view).enhance(saturation)
        return np.asarray(view)

    def _evaluation(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        width, height = self._resized(*image.size)
        if width * height > MAX_PIXELS:
            raise UndecodableError(
                f"{image.width} x {image.height} pixels are too long a shape: {width} x {height} when resized"
            )
        resized = image.resize((width, height), self._resampling)
        middle = round if self.rounding == "nearest" else math.floor
        left = middle((resized.width - self.width) / 2.0)
        top = middle((resized.height - self.height) / 2.0)
        return np.asarray(resized.crop((left, top, left + self.width, top + self.height)))

    @property
    def _resampling(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

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
