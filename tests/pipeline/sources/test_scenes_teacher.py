from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor

import pipeline.sources.scenes
from pipeline.sources.scenes import Scenes
from pipeline.sources.scenes.train_teacher import (
    FILE,
    MODEL,
    MODEL_ARGS,
    Training,
    accuracy,
    create,
    load_teacher,
    train,
)
from pipeline.sources.scenes.world import CLASSES

FOLDER = Path(pipeline.sources.scenes.__file__).parent
DESCRIPTION = json.loads((FOLDER / "teacher.json").read_text())
LEAST_ACCURACY = 0.9


def test_weights_are_small_enough_for_the_repository() -> None:
    assert (FOLDER / FILE).stat().st_size < 3_000_000


def test_description_is_of_the_model_that_the_script_makes() -> None:
    assert (DESCRIPTION["model"], DESCRIPTION["model_args"]) == (MODEL, MODEL_ARGS)
    assert tuple(DESCRIPTION["classes"]) == CLASSES


@pytest.mark.parametrize("split", ["val", "test"])
def test_shipped_teacher_names_held_out_scenes(split: str) -> None:
    scenes = [sample.scene for sample in Scenes().samples() if sample.split == split]
    measured = accuracy(load_teacher(), scenes)
    assert measured > LEAST_ACCURACY
    assert measured == pytest.approx(DESCRIPTION["accuracy"][split], abs=0.01)


def test_training_twice_gives_the_same_weights() -> None:
    first, second = _trained(), _trained()
    assert all(first[name].equal(second[name]) for name in first)


def test_training_changes_the_model() -> None:
    untrained = create(0).state_dict()
    assert not any(tensor.equal(untrained[name]) for name, tensor in _trained().items())


def _trained() -> dict[str, Tensor]:
    model = create(0)
    train(model, Training(num_images=32, num_epochs=1, batch_size=16, warm_up=1), forbidden=set())
    return model.state_dict()
