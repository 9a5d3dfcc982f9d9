from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.views import (
    AudioAugmentation,
    AudioView,
    ImageAugmentation,
    ImageView,
    Item,
    JointView,
    UndecodableError,
)

IMAGES = JointView(
    views=(ImageView(height=32, width=48), ImageView(height=20, width=20, crop_pct=0.9, interpolation="bilinear"))
)
SOUNDS = JointView(
    views=(AudioView(sample_rate_hz=16000, duration_s=0.5), AudioView(sample_rate_hz=22050, duration_s=0.3))
)


@pytest.fixture
def image(tmp_path: Path) -> Item:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    return Item(id="a", file=tmp_path / "a.png")


@pytest.fixture
def sound(tmp_path: Path) -> Item:
    samples = np.random.default_rng(0).uniform(-0.4, 0.4, 44100)
    soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    return Item(id="a", file=tmp_path / "a.wav")


def assert_equal(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("joint", "name"), [(IMAGES, "image"), (SOUNDS, "sound")])
def test_each_model_gets_what_its_own_view_gives(
    joint: JointView, name: str, request: pytest.FixtureRequest
) -> None:
    item = request.getfixturevalue(name)
    assert_equal(joint.load(item), tuple(view.load(item) for view in joint.views))


def test_random_views_of_images_are_of_one_region(image: Item) -> None:
    views, parameters = IMAGES.load_views(image, ImageAugmentation(), seed=3, num_views=4)
    for number, view in enumerate(IMAGES.views):
        alone, drawn = view.load_views(image, ImageAugmentation(), seed=3, num_views=4)
        np.testing.assert_array_equal(parameters, drawn)
        assert_equal(tuple(pair[number] for pair in views), tuple(alone))


def test_random_views_of_sounds_have_one_shift(sound: Item) -> None:
    views, parameters = SOUNDS.load_views(sound, AudioAugmentation(), seed=3, num_views=12)
    _, drawn = SOUNDS.views[1].load_views(sound, AudioAugmentation(), seed=3, num_views=12)
    np.testing.assert_array_equal(parameters, drawn)  # those of the shortest
    for number, view in enumerate(SOUNDS.views):
        assert_equal(tuple(pair[number] for pair in views), tuple(view.replay(sound, parameters)))


@pytest.mark.parametrize(
    ("joint", "name", "augmentation"),
    [(IMAGES, "image", ImageAugmentation()), (SOUNDS, "sound", AudioAugmentation())],
)
def test_replay_equals_the_views(
    joint: JointView, name: str, augmentation: ImageAugmentation, request: pytest.FixtureRequest
) -> None:
    item = request.getfixturevalue(name)
    views, parameters = joint.load_views(item, augmentation, seed=0, num_views=6)
    for found, expected in zip(joint.replay(item, parameters), views, strict=True):
        assert_equal(found, expected)
    for row, expected in zip(parameters, views, strict=True):
        assert_equal(joint.replay(item, row[None])[0], expected)


def test_item_is_decoded_once(image: Item, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_image = Image.open

    def counted(*arguments: object, **options: object) -> Image.Image:
        opened.append(arguments)
        return open_image(*arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    IMAGES.load_views(image, ImageAugmentation(), seed=0, num_views=3)
    assert len(opened) == 1


def test_what_can_not_be_decoded_is_refused(tmp_path: Path) -> None:
    for joint in (IMAGES, SOUNDS):
        with pytest.raises(UndecodableError, match="missing"):
            joint.load(Item(id="a", file=tmp_path / "nothing"))
