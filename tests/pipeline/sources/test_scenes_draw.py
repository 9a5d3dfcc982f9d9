from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.sources.scenes.draw import BACKGROUND_RGB, RGB, draw
from pipeline.sources.scenes.world import POSITIONS, SHAPES, SIZES, TEXTURES, Scene, Secondary

SCENE = Scene(
    shape="circle",
    colour="red",
    size="medium",
    texture="plain",
    position="centre",
    background="black",
    secondary=None,
    seed=3,
)


def test_image_is_64_by_64_rgb() -> None:
    image = draw(SCENE)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8


def test_same_scene_same_pixels_other_seed_others() -> None:
    assert np.array_equal(draw(SCENE), draw(SCENE))
    assert not np.array_equal(draw(SCENE), draw(replace(SCENE, seed=4)))


@pytest.mark.parametrize("colour", RGB)
def test_object_has_its_colour(colour: str) -> None:
    middle = draw(replace(SCENE, colour=colour))[28:36, 28:36].mean(axis=(0, 1))
    assert np.abs(middle - RGB[colour]).max() < 20


@pytest.mark.parametrize("background", BACKGROUND_RGB)
def test_background_has_its_brightness(background: str) -> None:
    corner = draw(replace(SCENE, background=background))[:8, :8].mean(axis=(0, 1))
    assert np.abs(corner - BACKGROUND_RGB[background]).max() < 20


def test_larger_objects_cover_more() -> None:
    areas = [_red(replace(SCENE, size=size)).sum() for size in SIZES]
    assert areas == sorted(areas)
    assert areas[2] > 2 * areas[0]


@pytest.mark.parametrize("position", POSITIONS)
def test_object_lies_where_its_position_says(position: str) -> None:
    y, x = (indices.mean() for indices in np.nonzero(_red(replace(SCENE, position=position))))
    expected = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}[position]
    assert (np.round((x - 32) / 11), np.round((y - 32) / 11)) == expected


@pytest.mark.parametrize(
    ("relation", "step"), [("left", (-1, 0)), ("right", (1, 0)), ("above", (0, -1)), ("below", (0, 1))]
)
def test_second_object_lies_where_its_relation_says(relation: str, step: tuple[int, int]) -> None:
    scene = replace(SCENE, secondary=Secondary(shape="square", colour="green", relation=relation))
    image = draw(scene).astype(int)
    y, x = (indices.mean() for indices in np.nonzero(image[..., 1] > image[..., 0] + 60))
    assert (x - 32) * step[0] + (y - 32) * step[1] > 14


def test_shapes_and_textures_look_different() -> None:
    images = [draw(replace(SCENE, shape=shape, texture=texture)) for shape in SHAPES for texture in TEXTURES]
    for i, image in enumerate(images):
        for other in images[:i]:
            differing = np.abs(image.astype(int) - other).max(axis=2) > 60
            assert differing.sum() > 30


def _red(scene: Scene) -> np.ndarray:
    image = draw(scene).astype(int)
    return (image[..., 0] > 150) & (image[..., 1] < 90)
