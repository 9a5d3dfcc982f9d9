from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from contract.errors import MissingExtraError
from eval.page import projection
from eval.page.projection import labels, project, require


def test_the_plane_keeps_what_is_in_two_dimensions(toy):
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2 * np.pi, 12)
    plane = np.zeros((12, 8))
    plane[:, [2, 5]] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = project(toy(vectors={"image": plane, "text": plane.repeat(2, axis=0), "audio": plane}).split, "pca")
    assert sum(found.explained) == pytest.approx(1)
    image = found.points["image"]
    between = np.linalg.norm(image[:, None] - image[None], axis=2)
    np.testing.assert_allclose(between, np.linalg.norm(plane[:, None] - plane[None], axis=2), atol=1e-6)


def test_the_map_is_the_same_each_time(toy):
    split = toy().split
    first, second = project(split, "pca"), project(split, "pca")
    for modality, points in first.points.items():
        np.testing.assert_array_equal(points, second.points[modality])


def test_many_items_are_sampled_evenly_and_counted(toy, monkeypatch):
    monkeypatch.setattr(projection, "NUM_POINTS", 15)
    found = project(toy().split, "pca")
    assert {name: len(points) for name, points in found.points.items()} == {"image": 5, "text": 5, "audio": 5}
    assert found.totals == {"image": 12, "text": 24, "audio": 12}


def test_constant_embeddings_are_one_point(toy):
    ones = {"image": np.ones((1, 8)), "text": np.ones((2, 8)), "audio": np.ones((1, 8))}
    found = project(toy(num_scenes=1, vectors=ones).split, "pca")
    assert found.explained == (0.0, 0.0)
    assert not any(points.any() for points in found.points.values())
    assert set(found.distances.values()) == {0.0}


def test_captions_and_sounds_have_the_label_of_their_image(toy):
    split = toy().split
    assert labels(split, "image").tolist() == [scene % 3 for scene in range(12)]
    assert labels(split, "text").tolist() == [scene % 3 for scene in range(12) for _ in range(2)]
    assert labels(split, "audio").tolist() == labels(split, "image").tolist()


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap-learn is installed")
def test_umap_that_is_not_installed_is_one_line():
    with pytest.raises(MissingExtraError, match="--map umap needs umap-learn"):
        require("umap")
