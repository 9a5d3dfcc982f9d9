"""Every objective and every student: two processes, each with its part of the batch, are as one with the whole.

What is here is taken from the unions: a newcomer is held to it from its first day.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from contract import config
from contract.store import TargetStore
from trainer.objectives import Objective
from trainer.recipes import Recipe
from trainer.students import Student

SCRIPT = Path(__file__).with_name("rank.py")
NUM_STEPS = 3
# Settings that an objective has no default for, or that make it do more, by its kind.
REQUIRED: dict[str, dict[str, Any]] = {
    "regression": {"head": "linear"},  # the target is of another width
    "moco": {"tags": "target"},
    "caption": {"decoder": {"width": 16, "num_heads": 2, "dropout": 0.0}},
}
# Those that say nothing of a sound.
OF_CAPTIONS = ("mlm", "mrm", "word_patch", "word_region", "generated", "caption")
# No dropout: each rank draws its own.
STILL: dict[str, Any] = {"dropout": 0.0, "token_dropout": 0.0}
ADAPTERS: dict[str, Any] = {
    "image": {"kind": "mlp", **STILL},
    "text": {"kind": "transformer", "num_heads": 2, **STILL},
    "audio": {"kind": "mlp", **STILL},
}
CHANGES: dict[str, Any] = {
    "student.dropout": 0.0,
    "student.adapters": ADAPTERS,
    "student.fusion": {"num_heads": 2, "dropout": 0.0},
    # Adam makes a full step of a gradient that is nothing but rounding: keep those small.
    "optimizer": {"learning_rate": 1e-5},
    "gradient_clip": 1e9,
    "batch_size": 66,  # of 47 pairs, which two processes can't share evenly
}
Found = dict[str, list[dict[str, Any]]]


def kinds(union: Any) -> dict[str, type]:
    """{kind: its configuration} of a discriminated union."""
    members = get_args(get_args(union)[0])
    return {next(field.default for field in dataclasses.fields(m) if field.name == "kind"): m for m in members}


def settings(kind: str, member: Any) -> dict[str, Any]:
    needed = {
        field.name
        for field in dataclasses.fields(member)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    lacking = needed - REQUIRED.get(kind, {}).keys()
    assert not lacking, f"objective {kind} has no default for {sorted(lacking)}: put a value into REQUIRED"
    return {"kind": kind, **REQUIRED.get(kind, {})}


OBJECTIVES = {kind: settings(kind, member) for kind, member in kinds(Objective).items()}
NAMES = [*OBJECTIVES, "all", "accumulated", *(f"student {kind}" for kind in kinds(Student))]


def changes(name: str, objectives: dict[str, Any]) -> dict[str, Any]:
    """What makes the tiny recipe the one of that name."""
    targets = {
        target: "logits"
        for tree in objectives.values()
        for target in kinds(Objective)[tree["kind"]](**{k: v for k, v in tree.items() if k != "kind"}).needs
    }
    found = {**CHANGES, "objectives": objectives, "targets": targets}
    if name in OF_CAPTIONS:
        found["streams"] = [{"pair": "image-text"}]
    if name == "accumulated":
        found |= {"batch_size": 12, "accumulate": 2}
    if name.startswith("student "):
        found["student.kind"] = name.removeprefix("student ")
    return found


@pytest.fixture(scope="module")
def found(
    recipe: Callable[..., Recipe], store: TargetStore, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Found]:
    """{"0-of-1": what the only process found, "0-of-2": the first of two, "1-of-2": the second}."""
    folder = tmp_path_factory.mktemp("ranks")
    trees = {}
    for name in NAMES:
        chosen = {name: OBJECTIVES[name]} if name in OBJECTIVES else OBJECTIVES
        trees[name] = config.tree(recipe(changes(name, chosen)))
    job = {"store": str(store.path), "recipes": trees, "num_steps": NUM_STEPS, "folder": str(folder)}
    (folder / "job.json").write_text(json.dumps(job))
    results = {}
    for num in (1, 2):
        commands = [
            [sys.executable, str(SCRIPT), str(folder / "job.json"), str(rank), str(num)] for rank in range(num)
        ]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
        for rank, process in enumerate(processes):
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
            results[f"{rank}-of-{num}"] = torch.load(folder / f"found-{rank}-of-{num}.pt")
    return results


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_as_one_with_the_whole_batch(name: str, found: dict[str, Found]) -> None:
    whole, part = found["0-of-1"][name], found["0-of-2"][name]
    for expected, step in zip(whole, part, strict=True):
        assert step["num_rows"] == expected["num_rows"]
        assert step["parts"] == pytest.approx(expected["parts"], rel=1e-4, abs=1e-6)
        for what in ("gradients", "kept"):
            require_close(step[what], expected[what])


@pytest.mark.parametrize("name", NAMES)
def test_both_processes_have_the_same_to_the_last_bit(name: str, found: dict[str, Found]) -> None:
    for expected, step in zip(found["0-of-2"][name], found["1-of-2"][name], strict=True):
        assert step["parts"] == expected["parts"]
        for what in ("gradients", "kept", "weights"):
            assert step[what].keys() == expected[what].keys()
            assert all(torch.equal(step[what][key], value) for key, value in expected[what].items()), what


def require_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums of other lengths differ in their last digits, and so does what ought to be zero."""
    assert found.keys() == expected.keys()
    largest = max((size(value) for value in expected.values()), default=0.0)
    for name, value in expected.items():
        error = size(found[name] - value)
        assert error <= 1e-4 * size(value) + 1e-6 * largest, f"{name}: {error} of {size(value)}"


def size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
