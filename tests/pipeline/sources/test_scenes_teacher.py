from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from contract.views import ImageView
from encoders import TimmImage
from pipeline.sources.scenes import Scenes
from pipeline.sources.scenes.draw import SIDE, draw
from pipeline.sources.scenes.train_teacher import (
    FOLDER,
    MODEL,
    MODEL_ARGS,
    PREPROCESSING,
    Training,
    accuracy,
    create,
    load_teacher,
    normalise,
    train,
)
from pipeline.sources.scenes.world import CLASSES

DESCRIPTION = json.loads((FOLDER / "config.json").read_text())
LEAST_ACCURACY = 0.9


def test_weights_are_small_enough_for_the_repository() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 3_000_000


def test_description_is_of_the_model_that_the_script_makes() -> None:
    assert DESCRIPTION["architecture"] == MODEL
    assert DESCRIPTION["model_args"].items() >= (MODEL_ARGS | {"img_size": [SIDE, SIDE]}).items()
    assert tuple(DESCRIPTION["label_names"]) == CLASSES


def test_preprocessing_of_the_model_is_its_own() -> None:
    teacher = TimmImage(model="local-dir:shipped:pipeline/sources/scenes/teacher")
    assert teacher.view() == ImageView(height=SIDE, width=SIDE, interpolation="bicubic")
    assert (teacher.recipe()["mean"], teacher.recipe()["std"]) == (PREPROCESSING["mean"], PREPROCESSING["std"])
    assert teacher.notes() == ()


def test_stored_logits_are_those_of_the_model_as_it_was_trained() -> None:
    images = [draw(sample.scene) for sample in list(Scenes().samples())[:4]]
    stored = TimmImage(model="local-dir:shipped:pipeline/sources/scenes/teacher").build("cpu")(images)["logits"]
    with torch.inference_mode():
        expected = load_teacher()(normalise(np.stack(images)))
    np.testing.assert_allclose(stored, expected.numpy(), atol=1e-5)


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
