"""The preprocessing of a transformers image model, read from its `preprocessor_config.json`, as a view and numbers.

    pixels  ->  ImageView (resize, crop; uint8)  ->  (pixels x rescale - mean) / std

What a processor does beyond that is refused by name, not left out. Read or not, each is then tried on a picture
against the library's own: a processor with steps that no key tells of is found out there.

Measured on 200 photographs of many shapes (Flickr8k, ImageNet) and the processors of twelve families: the view
equals the library's PIL backend in every pixel, and the numbers to 1e-6. The library's torchvision backend resizes
uint8 with its own arithmetic and lies up to 2 grey levels from PIL (8 in single pixels that DeiT's enlarges), 0.004
on average with bicubic and 0.03 with bilinear. DINOv3 has no PIL backend and resizes floats: up to 1 level, 0.28 on
average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import PositiveFloat

from contract.errors import ConfigError, DataError
from contract.views import ImageAugmentation, ImageView
from contract.views.image import CropMode, Interpolation, Rounding
from encoders import weights

if TYPE_CHECKING:
    import torch

FILES = ("preprocessor_config.json", "processor_config.json")
# The view's pixels and the library's may differ by so many grey levels: its backend on PIL, and on torchvision.
PIL_TOLERANCE, TORCHVISION_TOLERANCE = 0.01, 3.0


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What may override the model's own preprocessing; None leaves it as it is.

    `input_size` is channels, height and width of what the model sees, cut out of an image that was resized to
    `1 / crop_pct` of that; `rescale` is the factor before `mean` and `std`, as a rule 1 / 255.
    """

    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Interpolation | None = None
    crop_pct: PositiveFloat | None = None
    crop_mode: CropMode | None = None
    rescale: PositiveFloat | None = None


@dataclass(frozen=True, kw_only=True)
class Processing:
    """What a model does to an image: the view of it, then (pixels x rescale - mean) / std for each channel.

    `flipped` models take blue first. `notes` has one line for each override of the model's own preprocessing.
    """

    view: ImageView
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1 / 255
    flipped: bool = False
    notes: tuple[str, ...] = ()

    def recipe(self) -> dict[str, Any]:
        """What of it can change a value, as a JSON-able tree."""
        recipe = asdict(self)
        del recipe["notes"]
        return recipe

    def normalise(self, views: Sequence[npt.NDArray[np.uint8]], device: str) -> torch.Tensor:
        """n views, uint8 [h, w, 3] -> what the model takes, float32 [n, 3, h, w], on `device`."""
        import torch

        pixels = torch.from_numpy(np.stack(views)).to(device).permute(0, 3, 1, 2)
        if self.flipped:
            pixels = pixels.flip(1)
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        # 1 / (1 / 255) is 255 exactly.
        return (pixels.float() / (1 / self.rescale) - mean) / std


def read(folder: Path, overrides: Preprocessing) -> Processing:
    """The processing of the transformers model in `folder`, with the overrides put in.

    A processor that is missing, or that the view can't follow, needs `preprocessing` to say the whole of it.
    """
    source = str(folder / FILES[0])
    if not any((folder / file).is_file() for file in FILES):
        return settled(Preprocessing(), overrides, f"{source} is missing", rounding="down")
    processor = _load(folder, source)
    try:
        own = _own(processor)
        flipped = bool(getattr(processor, "do_flip_channel_order", False))
        _try(processor, replace(settled(own, Preprocessing(), source, rounding="down"), flipped=flipped))
    except _UnmappedError as error:
        return settled(Preprocessing(), overrides, f"{source}: {error}", rounding="down")
    return replace(settled(own, overrides, source, rounding="down"), flipped=flipped)


def settled(
    own: Preprocessing, overrides: Preprocessing, source: str, rounding: Rounding = "nearest"
) -> Processing:
    """The model's own preprocessing with the overrides put in; `source` says, for errors, where its own is from."""
    known, overriding = _known(own), _known(overrides)
    chosen: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "center", "rescale": 1 / 255} | known | overriding
    missing = [name for name in ("input_size", "interpolation", "mean", "std") if name not in chosen]
    if missing:
        asked = ", ".join(f"preprocessing.{name}" for name in missing)
        raise ConfigError(f"{source}; say what to do instead: {asked} (crop_mode, crop_pct, rescale)")
    channels, height, width = chosen["input_size"]
    if channels != 3 or min(height, width) < 1:
        raise ConfigError(f"{source}: inputs of {[channels, height, width]}; images are [3, height, width]")
    return Processing(
        view=ImageView(
            height=height,
            width=width,
            crop_pct=chosen["crop_pct"],
            crop_mode=chosen["crop_mode"],
            interpolation=chosen["interpolation"],
            rounding=rounding,
        ),
        mean=tuple(chosen["mean"]),
        std=tuple(chosen["std"]),
        rescale=chosen["rescale"],
        notes=tuple(
            f"preprocessing.{name} is {value}, the model's own is {known.get(name, 'unknown')}"
            for name, value in overriding.items()
            if value != known.get(name)
        ),
    )


class _UnmappedError(Exception):
    """A processor that does something else than the view and the normalisation; the message says what."""


def _known(preprocessing: Preprocessing) -> dict[str, Any]:
    values = {field.name: getattr(preprocessing, field.name) for field in fields(preprocessing)}
    return {name: value for name, value in values.items() if value is not None}


def _load(folder: Path, source: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        with weights.quiet():
            return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except Exception as error:  # of a broken file the library raises many kinds, RecursionError among them
        raise DataError(
            f"{source}: transformers can't make an image processor of it: {weights.reason(error)}"
        ) from error


def _own(processor: Any) -> Preprocessing:
    """The processor's settings, all of them."""
    for key in ("do_pad", "do_thumbnail", "do_align_long_axis", "do_color_quantize", "do_image_splitting"):
        if getattr(processor, key, False):
            raise _UnmappedError(f"{key} is true, which no view does")
    if hasattr(processor, "max_num_patches"):
        raise _UnmappedError("max_num_patches: it cuts each image into its own number of patches")
    height, width, crop_pct, crop_mode = _geometry(processor)
    mean, std, rescale = _colours(processor)
    return Preprocessing(
        input_size=(3, height, width),
        mean=mean,
        std=std,
        rescale=rescale,
        interpolation=cast(Interpolation, Image.Resampling(int(processor.resample)).name.lower()),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )


def _geometry(processor: Any) -> tuple[int, int, float, CropMode]:
    """Height, width, crop_pct and crop_mode of the view."""
    if not getattr(processor, "do_resize", False):
        raise _UnmappedError("do_resize is false, so that each image keeps its own size")
    size = {key: int(value) for key, value in dict(processor.size or {}).items() if value}
    name = type(processor).__name__
    if set(size) == {"shortest_edge"}:
        short = size["shortest_edge"]
        if name.startswith("ConvNext"):
            return (*_square(short), 1.0, "squash") if short >= 384 else _cropped(short, processor.crop_pct)
        if name.startswith("PoolFormer"):
            short = int(short / processor.crop_pct)
        elif name.startswith("Levit"):
            short = int(256 / 224 * short)
        if not getattr(processor, "do_center_crop", False):
            raise _UnmappedError("size has a shortest_edge and do_center_crop is false: no two images are alike")
        return (*_square(_crop_side(processor)), _crop_pct(_crop_side(processor), short), "center")
    if set(size) != {"height", "width"}:
        raise _UnmappedError(f"size is {size or 'not given'}")
    height, width = size["height"], size["width"]
    if not getattr(processor, "do_center_crop", False):
        return height, width, 1.0, "squash"
    if height != width:
        raise _UnmappedError(f"size is {size} and do_center_crop is true")
    return (*_square(_crop_side(processor)), _crop_pct(_crop_side(processor), height), "squash")


def _cropped(side: int, crop_pct: float) -> tuple[int, int, float, CropMode]:
    return (*_square(side), _crop_pct(side, int(side / crop_pct)), "center")


def _square(side: int) -> tuple[int, int]:
    return side, side


def _crop_side(processor: Any) -> int:
    crop = {key: int(value) for key, value in dict(processor.crop_size or {}).items() if value}
    if set(crop) != {"height", "width"} or crop["height"] != crop["width"]:
        raise _UnmappedError(f"crop_size is {crop or 'not given'}, not a square")
    return crop["height"]


def _crop_pct(side: int, resized: int) -> float:
    """The share for which the view resizes to exactly `resized` pixels."""
    if resized < side:
        raise _UnmappedError(f"crop_size is {side} of an image of {resized}, which would have to be padded")
    share = side / resized
    return share if math.floor(side / share) == resized else math.nextafter(share, 0)


def _colours(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float], float]:
    """Mean, std and rescale."""
    rescale = float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0
    normalises = bool(getattr(processor, "do_normalize", False))
    mean = _three(processor.image_mean, "image_mean") if normalises else (0.0, 0.0, 0.0)
    std = _three(processor.image_std, "image_std") if normalises else (1.0, 1.0, 1.0)
    if rescale != 1.0 and getattr(processor, "rescale_offset", False):
        mean = _three([value + 1 for value in mean], "image_mean")
    if getattr(processor, "include_top", False):  # EfficientNet divides once more
        again = _three(processor.image_std, "image_std")
        std = _three([value * other for value, other in zip(std, again, strict=True)], "image_std")
    return mean, std, rescale


def _three(values: Any, key: str) -> tuple[float, float, float]:
    three = [float(values)] * 3 if isinstance(values, int | float) else [float(value) for value in values]
    if len(three) != 3:
        raise _UnmappedError(f"{key} is {values}, and images have three channels")
    return three[0], three[1], three[2]


def _try(processor: Any, processing: Processing) -> None:
    """Refuse a processor that makes something else of a picture than `processing` does."""
    coarse = np.random.default_rng(0).integers(0, 256, (29, 43, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((617, 409), Image.Resampling.BICUBIC)
    view = processing.view.render(picture, np.zeros(len(ImageAugmentation.PARAMETERS), np.float32))
    try:
        theirs = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], np.float64)
    except Exception as error:  # whatever a processor raises, it is one that can't be followed
        raise _UnmappedError(f"{type(processor).__name__} fails: {weights.reason(error)}") from error
    ours = processing.normalise([view], "cpu")[0].numpy()
    if theirs.shape != ours.shape:
        raise _UnmappedError(f"{type(processor).__name__} gives {list(theirs.shape)}, not {list(ours.shape)}")
    levels = np.abs(theirs - ours) * np.array(processing.std)[:, None, None] / processing.rescale
    tolerance = PIL_TOLERANCE if type(processor).__name__.endswith("Pil") else TORCHVISION_TOLERANCE
    if levels.max() > tolerance:
        raise _UnmappedError(
            f"{type(processor).__name__} does more than resize, crop and normalise "
            f"(it lies {levels.max():.1f} grey levels from that)"
        )
