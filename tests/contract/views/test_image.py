import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as torchvision

from contract import config
from contract.errors import ConfigError
from contract.views import ImageAugmentation, ImageView, Item, UndecodableError

VIEW = ImageView(height=32, width=48)
WHOLE = (0, 0, 1, 1)
AS_IT_IS = (0, 1, 1, 1)


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
        raise AttributeError("'IFDRational' object has no attribute 'encode'")  # as PIL does on odd files

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", odd)
    with pytest.raises(UndecodableError, match="IFDRational"):
        load(ImageView(height=32, width=32), photograph(tmp_path / "a.jpg", 64, 64))


def digest(views: list[np.ndarray], parameters: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in (*views, parameters))).hexdigest()


def rows(*parameters: tuple[float, ...]) -> np.ndarray:
    return np.array(parameters, np.float32)


def test_first_view_is_the_evaluation_view(tmp_path: Path) -> None:
    item = Item(id="a", file=photograph(tmp_path / "a.png", 90, 60))
    views, parameters = VIEW.load_views(item, ImageAugmentation(), seed=0, num_views=2)
    np.testing.assert_array_equal(views[0], VIEW.load(item))
    assert not parameters[0].any()
    assert [view.shape for view in views] == [(32, 48, 3)] * 3
    assert {view.dtype for view in views} == {np.dtype(np.uint8)}
    assert (parameters.shape, parameters.dtype) == ((3, len(ImageAugmentation.PARAMETERS)), np.float32)


def test_same_seed_item_and_view_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 90, 60)
    code = f"""
import hashlib, pathlib
from contract.views import ImageAugmentation, ImageView, Item
item = Item(id="a", file=pathlib.Path({str(path)!r}))
views, parameters = ImageView(height=32, width=48).load_views(item, ImageAugmentation(), 3, 2)
print(hashlib.sha256(b"".join(array.tobytes() for array in (*views, parameters))).hexdigest())
"""
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert theirs.strip() == digest(*VIEW.load_views(Item(id="a", file=path), ImageAugmentation(), 3, 2))


def test_views_differ_among_themselves_between_seeds_and_between_items(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 90, 60)
    views = [
        view.tobytes()
        for name, seed in (("a", 0), ("a", 1), ("b", 0))
        for view in VIEW.load_views(Item(id=name, file=path), ImageAugmentation(), seed, 3)[0][1:]
    ]
    assert len(set(views)) == 9


def test_a_view_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    item = Item(id="a", file=photograph(tmp_path / "a.png", 90, 60))
    few, many = (VIEW.load_views(item, ImageAugmentation(), 0, number)[0] for number in (2, 5))
    np.testing.assert_array_equal(few, many[:3])


# Boxes of one pixel, boxes of no permitted ratio, and sides by which no fraction in float32 is exact.
@pytest.mark.parametrize("size", [(90, 60), (1, 1), (2, 61), (333, 7), (97, 89)])
@pytest.mark.parametrize("interpolation", ["bicubic", "nearest"])
def test_replay_equals_the_views_pixel_for_pixel(tmp_path: Path, size: tuple[int, int], interpolation: str) -> None:
    item = Item(id="a", file=photograph(tmp_path / "a.png", *size))
    view = ImageView(height=24, width=40, crop_pct=0.9, interpolation=interpolation)
    views, parameters = view.load_views(item, ImageAugmentation(scale=(0.01, 1.0)), seed=0, num_views=30)
    np.testing.assert_array_equal(view.replay(item, parameters), views)
    np.testing.assert_array_equal(view.replay(item, parameters[::-7]), views[::-7])


def test_models_of_different_input_size_see_the_same_region(tmp_path: Path) -> None:
    across, down = np.meshgrid(np.arange(250), np.arange(200))
    Image.fromarray(np.stack([across, down, down], axis=2).astype(np.uint8)).save(tmp_path / "a.png")
    item = Item(id="a", file=tmp_path / "a.png")
    augmentation = ImageAugmentation(flip=0, brightness=0, contrast=0, saturation=0)
    small, their_box = ImageView(height=32, width=32).load_views(item, augmentation, 0, 8)
    large, our_box = ImageView(height=60, width=90, crop_pct=0.5).load_views(item, augmentation, 0, 8)
    np.testing.assert_array_equal(their_box, our_box)
    for row, *views in zip(our_box[1:], small[1:], large[1:], strict=True):
        top, left, height, width = row[:4] * (200, 250, 200, 250)
        for view in views:
            # Red says how far across a pixel lies and green how far down, at the middle of the pixel.
            assert view[:, :, 0].mean() == pytest.approx(left + (width - 1) / 2, abs=0.6)
            assert view[:, :, 1].mean() == pytest.approx(top + (height - 1) / 2, abs=0.6)
            assert np.ptp(view[:, :, 0]) == pytest.approx(width * (1 - 1 / view.shape[1]), abs=2)
            assert np.ptp(view[:, :, 1]) == pytest.approx(height * (1 - 1 / view.shape[0]), abs=2)


def test_box_is_one_of_the_upright_image(tmp_path: Path) -> None:
    upright = Image.open(photograph(tmp_path / "a.png", 64, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    ours, theirs = (
        VIEW.load_views(Item(id="a", file=tmp_path / name), ImageAugmentation(), 0, 3)
        for name in ("a.png", "turned.png")
    )
    assert digest(*ours) == digest(*theirs)


def test_flip_mirrors_the_pixels(tmp_path: Path) -> None:
    item = Item(id="a", file=photograph(tmp_path / "a.png", 90, 60))
    box = (0.25, 0.5, 0.5, 0.25)
    straight, mirrored = VIEW.replay(item, rows((*box, 0, 1, 1, 1), (*box, 1, 1, 1, 1)))
    np.testing.assert_array_equal(mirrored, straight[:, ::-1])
    assert (mirrored != straight).any()


def test_colours_equal_torchvisions_in_their_order(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 48, 32)
    brightness, contrast, saturation = rows((0.7, 1.3, 0.625)).tolist()[0]
    image = torchvision.adjust_brightness(Image.open(path), brightness)
    image = torchvision.adjust_saturation(torchvision.adjust_contrast(image, contrast), saturation)
    (ours,) = VIEW.replay(Item(id="a", file=path), rows((*WHOLE, 0, brightness, contrast, saturation)))
    np.testing.assert_array_equal(ours, image)


def test_whole_box_without_colours_is_the_image(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 48, 32)
    (view,) = VIEW.replay(Item(id="a", file=path), rows((*WHOLE, *AS_IT_IS)))
    np.testing.assert_array_equal(view, Image.open(path))


def test_box_that_rounding_puts_outside_ends_at_the_edge(tmp_path: Path) -> None:
    item = Item(id="a", file=photograph(tmp_path / "a.png", 90, 60))
    more = np.nextafter(np.float32(1), np.float32(2))
    inside, outside = VIEW.replay(item, rows((*WHOLE, *AS_IT_IS), (0, 0, more, more, *AS_IT_IS)))
    np.testing.assert_array_equal(inside, outside)


@pytest.mark.parametrize("ratio", [(0.1, 0.2), (5.0, 10.0)])
def test_box_of_an_image_of_one_pixel_is_that_pixel(ratio: tuple[float, float]) -> None:
    box = ImageAugmentation(ratio=ratio).draw(np.random.default_rng(0), 1, 1)[:4]
    np.testing.assert_array_equal(box, WHOLE)


@given(
    seed=st.integers(0, 2**32),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    smallest=st.floats(0.001, 1),
    ratios=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    jitter=st.floats(0, 0.999),
)
def test_parameters_stay_in_range(
    seed: int, width: int, height: int, smallest: float, ratios: list[float], jitter: float
) -> None:
    augmentation = ImageAugmentation(
        scale=(smallest, 1), ratio=(ratios[0], ratios[1]), brightness=jitter, contrast=jitter, saturation=jitter
    )
    drawn = augmentation.draw(np.random.default_rng(seed), width, height)
    assert (drawn.shape, drawn.dtype) == ((8,), np.float32)
    top, left, box_height, box_width, flip, *colours = drawn.tolist()
    assert 0 <= top < top + box_height < 1 + 1e-6
    assert 0 <= left < left + box_width < 1 + 1e-6
    for pixels in (top * height, left * width, box_height * height, box_width * width):
        assert pixels == pytest.approx(round(pixels), abs=1e-3)
    assert flip in (0, 1)
    assert all(1 - jitter - 1e-6 < colour < 1 + jitter + 1e-6 for colour in colours)


def torchvisions_boxes(size: tuple[int, int], number: int) -> np.ndarray:
    """Top, left, height and width in fractions, [number, 4]."""
    width, height = size
    image, scale, ratio = Image.new("L", size), list(ImageAugmentation().scale), list(ImageAugmentation().ratio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        boxes = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(number)]
    return np.array(boxes) / (height, width, height, width)


def our_boxes(size: tuple[int, int], number: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.stack([ImageAugmentation().draw(generator, *size)[:4] for _ in range(number)])


@pytest.mark.parametrize("size", [(640, 480), (300, 400), (500, 250), (200, 200)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    ours, theirs = (
        np.stack([top, left, height * width, np.log(width / height)])
        for top, left, height, width in (our_boxes(size, 4000).T, torchvisions_boxes(size, 4000).T)
    )
    # The largest standard error of a difference of two means is 0.004.
    np.testing.assert_allclose(ours.mean(axis=1), theirs.mean(axis=1), atol=0.015)
    np.testing.assert_allclose(ours.std(axis=1), theirs.std(axis=1), atol=0.015)


@pytest.mark.parametrize("size", [(1000, 100), (90, 1001)])
def test_panorama_falls_back_to_torchvisions_middle(size: tuple[int, int]) -> None:
    np.testing.assert_allclose(our_boxes(size, 3), torchvisions_boxes(size, 3), atol=1e-6)


def test_flip_is_a_probability_and_colours_are_uniform() -> None:
    generator = np.random.default_rng(0)
    drawn = np.stack([ImageAugmentation(flip=0.25).draw(generator, 100, 100)[4:] for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), (0.25, 1, 1, 1), atol=0.03)
    np.testing.assert_allclose(drawn[:, 1:].std(axis=0), 0.8 / math.sqrt(12), atol=0.01)


def test_colours_without_jitter_stay_as_they_are() -> None:
    augmentation = ImageAugmentation(flip=0, brightness=0, contrast=0, saturation=0)
    np.testing.assert_array_equal(augmentation.draw(np.random.default_rng(0), 9, 9)[4:], AS_IT_IS)


def test_augmentation_is_read_from_yaml() -> None:
    tree = {"scale": [0.5, 1], "ratio": [1, 1.5], "flip": 0, "brightness": 0.1}
    expected = ImageAugmentation(scale=(0.5, 1.0), ratio=(1.0, 1.5), flip=0.0, brightness=0.1)
    assert config.parse(tree, ImageAugmentation, source="a.yaml") == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 0.4)),
        ("scale", (0.5, 1.1)),
        ("ratio", (0.0, 1.0)),
        ("ratio", (2.0, 1.0)),
        ("ratio", (1.0, math.inf)),
        ("flip", 1.1),
        ("flip", math.nan),
        ("brightness", 1.0),
        ("contrast", -0.1),
        ("saturation", math.nan),
    ],
)
def test_setting_that_no_view_can_have_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^image augmentation: {name} .* is not .*$"):
        ImageAugmentation(**{name: value})


def test_what_is_no_image_has_no_views(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"hello")
    item = Item(id="a", file=tmp_path / "text.jpg")
    with pytest.raises(UndecodableError, match="not a readable image"):
        VIEW.load_views(item, ImageAugmentation(), 0, 2)
    with pytest.raises(UndecodableError, match="not a readable image"):
        VIEW.replay(item, rows((*WHOLE, *AS_IT_IS)))
