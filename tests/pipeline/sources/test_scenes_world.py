from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest

from pipeline.sources.scenes import Scenes
from pipeline.sources.scenes.world import CLASSES, VARYING, Sample, Scene, distractors, sample_scene

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return Scenes().samples()


def test_default_sizes(samples: list[Sample]) -> None:
    assert Counter(sample.split for sample in samples) == {"train": 3000, "val": 250, "test": 500}


def test_same_seed_same_scenes_other_seed_others(samples: list[Sample]) -> None:
    assert Scenes().samples() == samples
    assert Scenes(seed=1).samples() != samples


def test_no_description_occurs_twice(samples: list[Sample]) -> None:
    descriptions = {sample.scene.description for sample in samples}
    assert len(descriptions) == len(samples)


def test_more_training_scenes_leave_validation_and_test_as_they_are(samples: list[Sample]) -> None:
    more = Scenes(num_train=3100).samples()
    assert [s for s in more if s.split != "train"] == [s for s in samples if s.split != "train"]


def test_every_split_has_groups_that_differ_in_one_attribute_only(samples: list[Sample]) -> None:
    groups: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.group >= 0:
            groups[sample.split, sample.group].append(sample)
    for group in groups.values():
        first, *others = group
        for other in others:
            assert _differing(first.scene, other.scene) == {first.varies}
    for split in SPLITS:
        assert {group[0].varies for (name, _), group in groups.items() if name == split} == set(VARYING)


@pytest.mark.parametrize("varies", VARYING)
def test_distractors_are_two_to_four_possible_scenes(varies: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        group = distractors(sample_scene(rng), varies, rng)
        assert 2 <= len(group) <= 4
        assert all(scene.possible for scene in group)
        assert len({scene.description for scene in group}) == len(group)


def test_second_object_has_another_colour_and_room(samples: list[Sample]) -> None:
    assert all(sample.scene.possible for sample in samples)


def test_label_names_colour_and_shape(samples: list[Sample]) -> None:
    assert len(set(CLASSES)) == 48
    for sample in samples:
        assert CLASSES[sample.scene.label] == f"{sample.scene.colour} {sample.scene.shape}"


def test_every_class_is_in_training(samples: list[Sample]) -> None:
    assert {sample.scene.label for sample in samples if sample.split == "train"} == set(range(48))


def test_description_forgets_the_seed_only() -> None:
    scene = sample_scene(np.random.default_rng(0))
    assert replace(scene, seed=1).description == scene.description
    assert _differing(scene, scene.description) == set()


def _differing(first: Scene, second: Scene) -> set[str]:
    names = {field.name for field in fields(Scene)} - {"seed"}
    return {name for name in names if getattr(first, name) != getattr(second, name)}
