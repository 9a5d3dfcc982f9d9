"""A run that begins with another run's best student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contract import fingerprint
from contract.errors import ConfigError, RunError
from contract.store import TargetStore
from trainer import checkpoint, runs
from trainer.device import Device
from trainer.fit import fit
from trainer.recipes import Recipe
from trainer.state import State
from trainer.warm_start import WarmStart

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]

CPU = Device(name="cpu", precision="float32")
SHORT: dict[str, Any] = {"epochs": 2, "targets": {}, "precision": "float32"}
INFONCE: dict[str, Any] = {"kind": "infonce"}
ANNEALED: dict[str, Any] = {"kind": "triplet_max", "anneal_steps": 100}
FIRST: dict[str, Any] = {**SHORT, "objectives": {"pairs": INFONCE, "hard": ANNEALED}}


@pytest.fixture(scope="module")
def first(recipe: Make, store: TargetStore, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A finished run."""
    run = runs.begin(recipe(FIRST), [store.path], tmp_path_factory.mktemp("runs") / "first")
    fit(run)
    return run


@pytest.fixture
def warm(recipe: Make, store: TargetStore, first: runs.Run, tmp_path: Path) -> Callable[..., runs.Run]:
    """Begin a run with the student of the first, and with changes."""

    def begin(changes: dict[str, Any] | None = None, name: str = "warm") -> runs.Run:
        made = recipe({**FIRST, "seed": 5, "warm_start": str(first.path), **(changes or {})})
        return runs.begin(made, [store.path], tmp_path / name)

    return begin


def state_of(run: runs.Run) -> tuple[State, str]:
    """A run's state before its first step, and what is said of it."""
    start = WarmStart(run)
    return State(run.recipe, run.streams, CPU, start=start), str(start)


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_run_begins_with_the_best_student_and_the_objectives_of_another(
    first: runs.Run, warm: Callable[..., runs.Run]
) -> None:
    state, said = state_of(warm())
    tensors, _ = checkpoint.load(first.best)
    assert equal(dict(state.student.state_dict()), checkpoint.under("student", tensors))
    assert equal(dict(state.objectives.state_dict()), checkpoint.under("objectives", tensors))
    assert int(state.objectives.state_dict()["1.step"]) > 0
    assert said == f"warm start: {first.best}: the student, objective pairs, objective hard"
    assert state.step == 0
    assert not state.optimizer.state_dict()["state"]


def test_objectives_are_found_by_name_and_kind_and_others_begin_anew(warm: Callable[..., runs.Run]) -> None:
    changes = {"new": ANNEALED, "hard": ANNEALED, "pairs": {"kind": "siglip"}, "sum": {"kind": "triplet_sum"}}
    state, said = state_of(warm({"objectives": changes}))
    assert said.endswith("the student, objective hard; anew: new (not there), pairs (infonce there)")
    steps = [int(state.objectives.state_dict()[f"{place}.step"]) for place in (0, 1)]
    assert steps[0] == 0
    assert steps[1] > 0


def test_objective_of_other_shapes_begins_anew(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    def changes(*widths: int) -> dict[str, Any]:
        return {**SHORT, "objectives": {"twins": {"kind": "barlow", "head_widths": widths}}}

    before = runs.begin(recipe(changes(8)), [store.path], tmp_path / "before")
    fit(before)
    after = recipe({**changes(6), "warm_start": str(before.path)})
    _, said = state_of(runs.begin(after, [store.path], tmp_path / "after"))
    assert said.endswith("the student; anew: twins (head.0.weight is [8, 24] there and [6, 24] here)")


def test_objectives_of_other_items_begin_anew_since_they_may_be_about_them(
    recipe: Make, new_store: NewStore, first: runs.Run, tmp_path: Path
) -> None:
    other = new_store(tmp_path / "tiny.zarr", splits=["train"] * 48 + ["val"] * 8 + ["test"] * 8)
    run = runs.begin(recipe({**FIRST, "warm_start": str(first.path)}), [other.path], tmp_path / "run")
    state, said = state_of(run)
    assert "anew: pairs (of other items or pairs), hard (of other items or pairs)" in said
    assert equal(dict(state.student.state_dict()), checkpoint.under("student", checkpoint.load(first.best)[0]))


def test_what_begins_as_a_copy_of_the_student_is_one_of_the_warm_student(warm: Callable[..., runs.Run]) -> None:
    state, _ = state_of(warm({"ema": {"decay": 0.9}}))
    assert state.ema is not None
    assert equal(dict(state.ema.module.state_dict()), dict(state.student.state_dict()))


def test_best_student_is_the_averages_where_its_figure_was_the_best(
    recipe: Make, store: TargetStore, tmp_path: Path
) -> None:
    averaged = recipe({**FIRST, "ema": {"decay": 0.5}, "validation": {"metric": "ema/rsum"}})
    before = runs.begin(averaged, [store.path], tmp_path / "before")
    fit(before)
    after = recipe({**FIRST, "warm_start": str(before.path)})
    state, _ = state_of(runs.begin(after, [store.path], tmp_path / "after"))
    tensors, _ = checkpoint.load(before.best)
    assert equal(dict(state.student.state_dict()), checkpoint.under("ema.module", tensors))
    assert not equal(dict(state.student.state_dict()), checkpoint.under("student", tensors))


def test_record_has_the_files_fingerprint_and_the_line_is_said_once(
    first: runs.Run, warm: Callable[..., runs.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = warm()
    fit(run)
    record = json.loads((run.path / "run.json").read_text())
    assert record["warm_start"] == {"run": str(first.path), "weights": fingerprint.of_file(first.best)}
    assert capsys.readouterr().err.count("warm start: ") == 1


def test_resumed_run_equals_uninterrupted_run_and_needs_the_other_run_no_more(
    recipe: Make,
    store: TargetStore,
    first: runs.Run,
    warm: Callable[..., runs.Run],
    fit_until: Callable[[runs.Run, int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = warm(name="whole")
    fit(whole)
    copy = tmp_path / "copy"
    shutil.copytree(first.path, copy)
    made = recipe({**FIRST, "seed": 5, "warm_start": str(copy)})
    fit_until(runs.begin(made, [store.path], tmp_path / "killed"), 6)
    shutil.rmtree(copy)
    capsys.readouterr()
    resumed = runs.resume(tmp_path / "killed", [])
    fit(resumed)
    assert "warm start: " not in capsys.readouterr().err
    (found, _), (expected, _) = (checkpoint.load(run.best) for run in (resumed, whole))
    assert equal(found, expected)


def test_run_that_was_killed_before_its_first_checkpoint_begins_with_the_same_file_or_not_at_all(
    recipe: Make, store: TargetStore, first: runs.Run, fit_until: Callable[[runs.Run, int], None], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(first.path, copy)
    made = recipe({**FIRST, "warm_start": str(copy)})
    fit_until(runs.begin(made, [store.path], tmp_path / "run"), 2)
    resumed = runs.resume(tmp_path / "run", [])
    assert str(WarmStart(resumed)).startswith(f"warm start: {copy}")
    tensors, state = checkpoint.load(copy / "best.safetensors")
    checkpoint.save(copy / "best.safetensors", tensors, {**state, "step": 0})
    with pytest.raises(RunError, match=r"copy/best.safetensors is no longer the file that .*run was to begin with"):
        fit(runs.resume(tmp_path / "run", []))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student.width": 16}, r"best.safetensors is not like .*\[.*\] there and \[.*\] here; make `student`"),
        ({"student.embedding_dim": 12}, r"hidden.1.weight is \[24, 32\] there and \[12, 32\] here"),
        ({"student.kind": "transformer"}, "is nothing there and .* here"),
        ({"student.fusion": {"num_heads": 2}}, r"fusion.* is nothing there and \[.*\] here"),
        (
            {"targets": {"logits": "logits"}, "objectives": {"kd": {"kind": "kd_kl"}}},
            r"classify.weight is nothing there and \[8, 24\] here",
        ),
    ],
)
def test_student_that_is_not_like_it_is_refused_in_one_line_before_anything_is_written(
    warm: Callable[..., runs.Run], changes: dict[str, Any], message: str
) -> None:
    run = warm(changes)
    with pytest.raises(ConfigError, match=rf"^warm_start: the student of .*{message}") as caught:
        fit(run)
    assert "\n" not in str(caught.value)
    assert not (run.path / "run.json").exists()


def test_run_that_is_not_there_or_not_finished_or_lacks_its_best_is_refused(
    recipe: Make, store: TargetStore, first: runs.Run, tmp_path: Path
) -> None:
    def begin(path: Path) -> None:
        runs.begin(recipe({**FIRST, "warm_start": str(path)}), [store.path], tmp_path / "run")

    with pytest.raises(ConfigError, match=r"^warm_start: .*nowhere: no run there"):
        begin(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(first.path, copy)
    (copy / "best.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"^warm_start: .*best.safetensors is not there any more"):
        begin(copy)
    (copy / "run.json").write_text(json.dumps({**first.record, "finished": False}))
    with pytest.raises(ConfigError, match=r"^warm_start: .*copy is not finished; `trainer run --run"):
        begin(copy)


def test_state_of_a_version_that_did_not_say_its_recipe_is_refused(
    recipe: Make, store: TargetStore, first: runs.Run, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(first.path, copy)
    tensors, state = checkpoint.load(first.best)
    checkpoint.save(copy / "best.safetensors", tensors, {k: v for k, v in state.items() if k != "recipe"})
    run = runs.begin(recipe({**FIRST, "warm_start": str(copy)}), [store.path], tmp_path / "run")
    with pytest.raises(RunError, match="is of an older version"):
        fit(run)
