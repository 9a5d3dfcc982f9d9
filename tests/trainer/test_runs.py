from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConfigError, RunError, StoreError
from contract.store import TargetStore
from trainer import runs
from trainer.fit import fit
from trainer.recipes import Recipe

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]


def created(*arguments: Any) -> runs.Run:
    run = runs.begin(*arguments)
    run.create()
    return run


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_options_the_newest_store_and_the_next_number_are_taken(
    recipe: Make, new_store: NewStore, capsys: pytest.CaptureFixture[str]
) -> None:
    new_store(Path("stores/tiny.zarr"))
    assert created(recipe(), [], None).path == Path("runs/tiny-tiny-001")
    assert "store: stores/tiny.zarr" in capsys.readouterr().err
    Path("runs/tiny-tiny-007").mkdir()
    assert runs.begin(recipe(), [], None).path == Path("runs/tiny-tiny-008")


def test_no_store_yet_is_one_line(recipe: Make) -> None:
    with pytest.raises(StoreError, match="no store under stores/"):
        runs.begin(recipe(), [], None)
    assert not Path("runs").exists()


def test_existing_run_is_refused_without_resume(recipe: Make, store: TargetStore) -> None:
    created(recipe(), [store.path], Path("mine"))
    with pytest.raises(RunError, match=r"mine exists.*--resume"):
        runs.begin(recipe(), [store.path], Path("mine"))


def test_refused_store_leaves_no_folder(recipe: Make, new_store: NewStore) -> None:
    store = new_store(Path("stores/tiny.zarr"), shards_left_out=("image/teacher",))
    with pytest.raises(StoreError, match="incomplete"):
        runs.begin(recipe(), [store.path], Path("run"))
    assert not Path("run").exists()


def test_store_of_another_teacher_than_expected_is_refused(recipe: Make, store: TargetStore) -> None:
    expecting = recipe({"expect": {"image/logits": {"shape": [8], "recipe": {"model": "resnet50"}}}})
    with pytest.raises(StoreError, match=r"image/teacher/logits.*recipe\.model: 'drawn', not 'resnet50'"):
        runs.begin(expecting, [store.path], None)
    runs.begin(recipe({"expect": {"image/logits": {"shape": [8]}}}), [store.path], None)


def test_resume_takes_the_newest_unfinished_run(recipe: Make, store: TargetStore) -> None:
    first = created(recipe(), [store.path], None)
    second = created(recipe(), [store.path], None)
    second.finish()
    assert runs.resume(None, []).path == first.path
    assert runs.resume(second.path, []).record["finished"]


def test_nothing_to_resume_is_one_line() -> None:
    with pytest.raises(RunError, match="no unfinished run under runs/"):
        runs.resume(None, [])
    with pytest.raises(RunError, match="nowhere: no run there"):
        runs.resume(Path("nowhere"), [])


def test_resume_with_another_recipe_is_refused(recipe: Make, store: TargetStore) -> None:
    run = created(recipe(), [store.path], None)
    assert runs.resume(run.path, [], run.path / "config.yaml", ["epochs=4"]).recipe == run.recipe
    with pytest.raises(ConfigError, match=r"objectives\.kd\.temperature: 2\.0, not 1\.0"):
        runs.resume(run.path, [], None, ["objectives.kd.temperature=2.0"])


def test_resume_on_a_store_of_another_teacher_says_which_part_differs(
    recipe: Make, new_store: NewStore, store: TargetStore
) -> None:
    run = created(recipe(), [store.path], None)
    other = new_store(Path("other.zarr"), model="another")
    with pytest.raises(StoreError, match=r"audio/teacher differs: recipe\.model: 'another', not 'drawn'"):
        runs.resume(run.path, [other.path])


def test_resume_on_a_store_of_other_items_says_so(recipe: Make, new_store: NewStore, store: TargetStore) -> None:
    run = created(recipe(), [store.path], None)
    other = new_store(Path("other.zarr"), splits=["train"] * 60 + ["val"] * 20)
    with pytest.raises(StoreError, match="manifest differs: other items"):
        runs.resume(run.path, [other.path])


def test_store_may_be_moved_between_begin_and_resume(recipe: Make, new_store: NewStore) -> None:
    store = new_store(Path("stores/tiny.zarr"))
    run = created(recipe(), [store.path], None)
    store.path.rename("moved.zarr")
    assert runs.resume(run.path, [Path("moved.zarr")]).path == run.path
    with pytest.raises(StoreError, match=r"stores/tiny\.zarr: no target store there"):
        runs.resume(run.path, [])


def test_store_named_by_the_recipe_needs_no_option(recipe: Make, store: TargetStore) -> None:
    listed = [{"pair": "image-text", "store": str(store.path)}]
    run = created(recipe({"streams": listed}), [], None)
    assert run.record["trained"] == {"tiny": ["image-text"]}


def test_record_names_stores_and_environment(recipe: Make, store: TargetStore) -> None:
    run = created(recipe(), [store.path], None)
    record = json.loads((run.path / "run.json").read_text())
    assert record["finished"] is False
    assert record["stores"][0]["path"] == str(store.path)
    (environment,) = json.loads((run.path / "environment.json").read_text())
    assert {"precept", "python", "platform", "cpu", "num_threads", "gpus", "packages"} <= set(environment)


def test_recipe_that_the_store_can_not_train_leaves_no_folder(recipe: Make, store: TargetStore) -> None:
    with pytest.raises(ConfigError, match=r"student\.adapters has no entry for text, audio"):
        fit(runs.begin(recipe({"student.adapters": {"image": {"kind": "mlp"}}}), [store.path], Path("run")))
    assert not Path("run").exists()


def test_expectation_without_a_modality_is_refused(recipe: Make, store: TargetStore) -> None:
    with pytest.raises(ConfigError, match=r"expect\.logits: name the modality too, as in image/logits"):
        runs.begin(recipe({"expect": {"logits": {"shape": [8]}}}), [store.path], None)
