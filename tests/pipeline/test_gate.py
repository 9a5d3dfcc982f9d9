"""The teacher gate: it lets a good teacher through, and stops a run whose inputs are mixed up."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contract.config import SHIPPED
from pipeline.sources.scenes.world import CLASSES

COLOURS = {"black": (0, 0, 0), "red": (220, 20, 20), "green": (20, 180, 40), "blue": (30, 40, 220)}
COLOURS |= {"yellow": (240, 220, 40), "purple": (150, 40, 160), "orange": (250, 140, 20), "white": (255, 255, 255)}
NUM_IMAGES = 96


def describe(project: Any, captions: Sequence[str]) -> None:
    entries = [
        {"filename": f"{number}.png", "split": "train", "sentences": [{"raw": caption}]}
        for number, caption in enumerate(captions)
    ]
    (project.data / "captions.json").write_text(json.dumps({"images": entries}))


@pytest.fixture
def coloured(make_project: Any, tmp_path: Path) -> Any:
    """Photographs of two colours each, which the captions name, and a teacher that sees them without training."""
    project = make_project(tmp_path, 1)
    rng = np.random.default_rng(0)
    captions = []
    for number in range(NUM_IMAGES):
        sky, field = (list(COLOURS)[k] for k in rng.integers(0, len(COLOURS), 2))
        picture = np.repeat(np.uint8([COLOURS[sky], COLOURS[field]]), 8, axis=0)[:, None].repeat(16, axis=1)
        Image.fromarray(picture).save(project.data / f"images/{number}.png")
        captions.append(f"{sky} over {field}")
    project.captions = captions
    describe(project, captions)
    project.configure(gate={"num_samples": 256})
    return project


def gate_of(project: Any, *more: str) -> str:
    """The line that the gate prints, "" for none."""
    exit_code, out, err = project.call(*project.arguments(*more))
    assert exit_code == 0, err
    lines = [line for line in err.splitlines() if line.startswith("gate: ")]
    assert len(lines) <= 1
    assert "gate: " not in out
    return lines[0] if lines else ""


def test_teacher_that_sees_what_the_captions_say_is_let_through_and_scored_once(coloured) -> None:
    line = gate_of(coloured)
    assert line.startswith("gate: image/teacher: text-to-image R@3 among 32, by a linear map, ")
    assert line.endswith("% on 32 samples (chance 9.4%)")
    figure = coloured.opened().gate("image/teacher")
    assert figure["value"] > 0.5
    assert f"{figure['value']:.1%}" in line
    shown = coloured.call("show", "stores/tiny.zarr").out
    assert f"gate: text-to-image R@3 among 32, by a linear map, {figure['value']:.1%}, chance 9.4%" in shown

    shutil.rmtree(coloured.store / "precept/commits/image")
    assert gate_of(coloured) == ""
    assert coloured.opened().complete("image/teacher")


def test_captions_of_the_next_photograph_are_refused(coloured) -> None:
    describe(coloured, [*coloured.captions[1:], coloured.captions[0]])
    message = coloured.error_of(*coloured.arguments())
    assert "gate: image/teacher: text-to-image R@3 among 32, by a linear map," in message
    assert "no better than guessing; look at the weights, the preprocessing" in message
    assert coloured.opened().fieldsets == {}
    # The way on, for those who know better.
    assert gate_of(coloured, "--set", "gate.num_samples=0") == ""
    assert coloured.opened().gate("image/teacher") is None
    assert "gate: " not in coloured.call("show", "stores/tiny.zarr").out


def test_blind_teacher_is_refused(coloured) -> None:
    weights = load_file(coloured.folder / "teacher.safetensors")
    blind = {name: torch.zeros_like(value) if "patch_embed" in name else value for name, value in weights.items()}
    save_file(blind, coloured.folder / "teacher.safetensors")
    assert "no better than guessing" in coloured.error_of(*coloured.arguments())


def test_too_few_samples_say_nothing(coloured) -> None:
    assert gate_of(coloured, "--set", "gate.num_samples=59", "--store", "a.zarr") == ""
    describe(coloured, coloured.captions[:59])
    assert gate_of(coloured) == ""


def test_photographs_that_cannot_be_decoded_are_not_scored(coloured) -> None:
    for number in range(0, NUM_IMAGES, 3):
        (coloured.data / f"images/{number}.png").write_bytes(b"no image")
    assert "R@2 among 21" in gate_of(coloured)
    for number in range(NUM_IMAGES):
        (coloured.data / f"images/{number}.png").write_bytes(b"no image")
    assert gate_of(coloured, "--store", "stores/none.zarr") == ""


def test_second_teacher_is_scored_on_the_words_that_are_stored(coloured) -> None:
    first = gate_of(coloured)
    second = {"image": {"second": coloured.encoders["image"]["teacher"]}}
    coloured.write("second.yaml", {"encoders": second})
    figures = first.partition(": text-to-image")[2]
    assert gate_of(coloured, "--config", "second.yaml") == f"gate: image/second: text-to-image{figures}"


TOWERS = """
import torch

COLOURS = {colours}


class Tower(torch.nn.Module):
    about = {{"embedding": {{"space": "colours"}}}}


class Images(Tower):
    def forward(self, pixels):
        return {{"embedding": pixels.unflatten(2, (2, -1)).mean(dim=(3, 4)).flatten(1) - 0.5}}


class Captions(Tower):
    def forward(self, captions):
        words = [caption.split() for caption in captions]
        found = [[COLOURS.get(word, (0, 0, 0)) for word in (row[0], row[-1])] for row in words]
        return {{"embedding": torch.tensor(found).div(255).sub(0.5).transpose(1, 2).flatten(1)}}


def images():
    return Images()


def captions():
    return Captions()
"""


@pytest.fixture
def towers(coloured: Any) -> Any:
    """The photographs of two colours with a dual encoder, whose towers give the same vector of both."""
    (coloured.folder / "colour_towers.py").write_text(TOWERS.format(colours=COLOURS))
    view = {"input_size": [3, 16, 16], "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
    image = {"kind": "custom", "factory": "colour_towers:images", "preprocessing": view}
    text = {"kind": "custom", "factory": "colour_towers:captions"}
    coloured.encoders = {"image": {"teacher": image}, "text": {"tokens": text}}
    coloured.configure(gate={"num_samples": 256})
    return coloured


def test_dual_encoder_is_scored_by_the_cosine_of_its_two_embeddings(towers) -> None:
    line = gate_of(towers)
    assert re.match(r"gate: image/teacher: text-to-image R@\d+ among 96, by cosine, (9\d|100)\.", line), line
    # Once more, on the captions' embeddings that are stored.
    image = towers.encoders["image"]["teacher"]
    towers.write("second.yaml", {"encoders": {"image": {"second": image}}})
    assert "among 96, by cosine, " in gate_of(towers, "--config", "second.yaml")


def test_dual_encoder_of_captions_of_other_photographs_is_refused(towers) -> None:
    describe(towers, [*towers.captions[1:], towers.captions[0]])
    message = towers.error_of(*towers.arguments())
    assert "among 96, by cosine, " in message
    assert "no better than guessing" in message


def test_dual_encoder_without_its_text_tower_is_scored_by_a_linear_map(towers) -> None:
    towers.encoders["text"] = {"tokens": {"kind": "ngrams", "max_length": 8, "width": 64}}
    towers.configure(gate={"num_samples": 256})
    assert "among 32, by a linear map, " in gate_of(towers)


def test_labels_of_the_teachers_classes_give_its_accuracy(scenes) -> None:
    line = gate_of(scenes)
    assert line.startswith("gate: image/teacher: top-1 accuracy 9")
    assert "on 90 samples (chance " in line
    assert scenes.opened().gate("image/teacher")["num_samples"] == 90


def test_classes_in_another_order_are_refused(scenes) -> None:
    _shuffle_classes(scenes, torch.arange(len(CLASSES)).roll(1))
    message = scenes.error_of(*scenes.arguments(*_checkpoint(scenes)))
    assert "gate: image/teacher: top-1 accuracy 0.0% on 90 samples" in message
    assert "no better than guessing" in message


def test_teacher_that_always_says_the_same_is_refused(scenes) -> None:
    _shuffle_classes(scenes, torch.zeros(len(CLASSES), dtype=torch.int64), bias=torch.arange(len(CLASSES)))
    assert "no better than guessing" in scenes.error_of(*scenes.arguments(*_checkpoint(scenes)))


def test_other_weights_under_the_same_name_are_scored_anew(scenes) -> None:
    scenes.precompute()
    shutil.rmtree(scenes.store / "precept/commits/image")  # killed before the first shard
    _shuffle_classes(scenes, torch.arange(len(CLASSES)).roll(1))
    assert "no better than guessing" in scenes.error_of(*scenes.arguments(*_checkpoint(scenes)))
    scenes.precompute(*_checkpoint(scenes), "--set", "gate.num_samples=0")
    assert "gate: " not in scenes.call("show", "stores/tiny.zarr").out


def _shuffle_classes(project: Any, order: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    weights = load_file(SHIPPED / "pipeline/sources/scenes/teacher/model.safetensors")
    shuffled = {name: value[order] if name.startswith("head.") else value for name, value in weights.items()}
    if bias is not None:
        shuffled["head.bias"] = bias.to(shuffled["head.bias"])
    save_file(shuffled, project.folder / "shuffled.safetensors")


def _checkpoint(project: Any) -> list[str]:
    return ["--set", f"encoders.image.teacher.checkpoint={project.folder / 'shuffled.safetensors'}"]
