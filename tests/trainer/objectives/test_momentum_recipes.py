"""The recipes of CODIS and MCT train, and go on from a checkpoint as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contract import config
from contract.store import TargetStore
from trainer import checkpoint, runs
from trainer.device import Device
from trainer.recipes import Recipe
from trainer.state import State
from trainer.step import take_step
from trainer.streams import Streams

NewStore = Callable[..., TargetStore]
CPU = Device(name="cpu", precision="float32")
LABELS = [sample % 5 - 1 for sample in range(80)]  # a fifth has none
SMALL: dict[str, Any] = {"batch_size": 8, "accumulate": 2}
SMALL_STUDENT: dict[str, Any] = {"width": 32, "embedding_dim": 24, "num_heads": 2}


def shrunk(name: str, changes: dict[str, Any]) -> Recipe:
    """A shipped recipe with another student and batch, and {"objective.setting": value}."""
    tree = {**config.read_tree(config.SHIPPED / f"configs/trainer/{name}.yaml"), **SMALL}
    tree["student"] |= SMALL_STUDENT
    for path, value in changes.items():
        objective, setting = path.split(".")
        tree["objectives"][objective][setting] = value
    if "tags" in name and tree["objectives"]["intra"]["tags"] == "target":
        tree["targets"] = {"logits": "logits"}
    return config.parse(tree, Recipe, source=name)


def steps(state: State, recipe: Recipe, streams: Streams, num: int) -> list[dict[str, float]]:
    first, last = state.step * recipe.accumulate, (state.step + num) * recipe.accumulate
    batches = (streams.read(number).to("cpu") for number in range(first, last))
    state.student.train()
    return [take_step(state, recipe, batches, 0.001).parts for _ in range(num)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("codis", {"align.queue_size": 50, "codebook.num_codes": 6}),
        ("codis", {"align.momentum": 0.9}),
        ("mct", {"intra.queue_size": 50}),
        ("mct_tags", {}),
        ("mct_tags", {"intra.tags": "target"}),
    ],
    ids=str,
)
def test_recipe_trains_and_goes_on_from_a_checkpoint_with_the_same_bytes(
    name: str, changes: dict[str, Any], tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "store.zarr", labels=LABELS)
    recipe = shrunk(name, changes)
    run = runs.begin(recipe, [store.path], tmp_path / "run")
    state = State(recipe, run.streams, CPU)
    steps(state, recipe, run.streams, 2)
    kept = tmp_path / "two.safetensors"
    state.save(kept)
    expected = steps(state, recipe, run.streams, 2)
    resumed = State(recipe, run.streams, CPU)
    resumed.restore(kept, *checkpoint.load(kept))
    assert steps(resumed, recipe, run.streams, 2) == expected
    found = resumed.tensors()
    assert all(torch.equal(tensor, found[key]) for key, tensor in state.tensors().items())


def test_labels_are_numbered_by_place_and_datasets_share_none(
    recipe: Callable[..., Recipe], tmp_path: Path, new_store: NewStore
) -> None:
    paths = [new_store(tmp_path / f"{name}.zarr", dataset=name, labels=LABELS).path for name in ("one", "two")]
    streams = runs.begin(recipe(), paths, tmp_path / "run").streams
    labels = streams.labels()
    assert len(labels) == streams.num_places
    for stream in streams.streams:
        places = slice(stream.first_place, stream.first_place + len(stream.anchors))
        own = torch.tensor([LABELS[row] for row in stream.anchors])
        first = 0 if stream.store.manifest.dataset == "one" else 4
        assert torch.equal(labels[places], torch.where(own < 0, -1, own + first))
