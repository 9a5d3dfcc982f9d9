"""Files that hold an image, and parts of files that do: decoded to RGB, upright.

What is decoded is what Pillow's `exif_transpose` and `convert("RGB")` give, as in timm's and torchvision's loaders:

    greyscale, palette, CMYK   converted; a transparency is dropped and not laid over a colour
    16 bits a channel          the upper 8 of them, of greyscale too, which Pillow itself would clip to white
    32 bits, floats            quarantined: there is no telling which of their values is white
    animated                   the first frame
    EXIF that is damaged       passed over: the image is taken to be upright
    cut off                    quarantined, never half grey

An image of more than `MAX_PIXELS`, or of a shape that would have as many when resized, is quarantined.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from contract import parts
from contract.undecodable import said
from contract.views.item import Item, UndecodableError

# Where Pillow itself refuses to go on: 700 MB when decoded.
MAX_PIXELS = 178_956_970
# What images come in; Pillow would also run PostScript, and open what is an image only in part.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
PILLOW = re.compile(r"PIL\.")
BITS_PER_SAMPLE = 258  # a tag of TIFF


def decode(item: Item) -> Image.Image:
    """The whole image, RGB, upright."""
    source = parts.read(item.file, item.part) if item.part else item.file
    if isinstance(source, np.ndarray):
        _require_size(source.shape[1], source.shape[0])
        return Image.fromarray(source).convert("RGB")
    _silence_pillow()
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as file:
            _require_size(*file.size)
            file.load()
            # Broken EXIF is common on the web, and says nothing of the pixels.
            with suppress(Exception):
                ImageOps.exif_transpose(file, in_place=True)
            return _rgb(file)
    except UndecodableError:
        raise
    except FileNotFoundError as error:
        raise UndecodableError("the file is missing") from error
    except UnidentifiedImageError as error:
        raise UndecodableError(f"not a readable image: none of {', '.join(FORMATS)}, or truncated") from error
    except Image.DecompressionBombError as error:
        raise UndecodableError(f"too large: {said(error, item.file)}") from error
    except Exception as error:
        # What a broken file raises in PIL has no common parent: OSError, SyntaxError, struct.error and more.
        raise UndecodableError(f"not a readable image, truncated or broken: {said(error, item.file)}") from error


def _require_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise UndecodableError(f"{width} x {height} pixels: an image has 1 to {MAX_PIXELS:,}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        tags = getattr(image, "tag_v2", {})
        num_bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        values = np.asarray(image) >> (num_bits - 8)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "32 bits"
        raise UndecodableError(f"pixels of {kind} have no agreed range: save the image with 8 or 16 bits a channel")
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _silence_pillow() -> None:
    """Let Pillow warn of no single file: of its size, its palette, its EXIF.

    `warnings.catch_warnings` can't be used here, since it changes what other threads see.
    """
    if ("ignore", None, Warning, PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)
