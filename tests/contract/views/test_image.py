from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from contract.views import ImageView, Item, UndecodableError


def photograph(path: Path, width: int, height: int) -> Path:
    """A smooth random picture, so that interpolation matters."""
    small = np.random.default_rng(width).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def load(view: ImageView, path: Path) -> np.ndarray:
    return view.load(Item(id="a", file=path))


@pytest.mark.parametrize("size", [(320, 240), (240, 321), (37, 200), (224, 224)])
@pytest.mark.parametrize("target", [(224, 224), (64, 64), (96, 160)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_view_equals_timms_evaluation_transform(
    tmp_path: Path, size: tuple[int, int], target: tuple[int, int], crop_mode: str, interpolation: str
) -> None:
    path = photograph(tmp_path / "a.png", *size)
    transform = create_transform(
        input_size=(3, *target), crop_pct=0.875, crop_mode=crop_mode, interpolation=interpolation, normalize=False
    )
    theirs = transform(Image.open(path).convert("RGB")).permute(1, 2, 0).numpy()
    view = ImageView(
        height=target[0], width=target[1], crop_pct=0.875, crop_mode=crop_mode, interpolation=interpolation
    )
    np.testing.assert_array_equal(load(view, path), theirs)


def test_photograph_is_turned_upright(tmp_path: Path) -> None:
    upright = Image.open(photograph(tmp_path / "a.png", 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    view = ImageView(height=64, width=64)
    np.testing.assert_array_equal(load(view, tmp_path / "turned.png"), np.asarray(upright))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.open(photograph(tmp_path / "rgb.png", 40, 30)).convert("RGBA" if mode == "LA" else mode).save(path)
    assert load(ImageView(height=32, width=32), path).shape == (32, 32, 3)


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    view = ImageView(height=32, width=32)
    whole = photograph(tmp_path / "a.jpg", 64, 64).read_bytes()
    for name, content in {"short.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UndecodableError, match="not a readable image") as caught:
            load(view, tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(UndecodableError, match="the file is missing"):
        load(view, tmp_path / "nothing.jpg")


def test_whatever_breaks_in_the_decoder_is_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(_: object) -> None:
        raise AttributeError("'IFDRational' object has no attribute 'encode'")  # as PIL does on odd EXIF blocks

    monkeypatch.setattr("contract.views.image.ImageOps.exif_transpose", odd)
    with pytest.raises(UndecodableError, match="IFDRational"):
        load(ImageView(height=32, width=32), photograph(tmp_path / "a.jpg", 64, 64))
