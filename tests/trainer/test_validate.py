from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.errors import ConfigError
from contract.ranking import neighbour_hits
from contract.store import TargetStore
from trainer.device import Device
from trainer.embed import embed
from trainer.recipes import Collapse, Recipe, Validation
from trainer.resolve import resolve
from trainer.state import State
from trainer.validate import judge, measure, spread, validation_sets

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]

CPU = Device(name="cpu", precision="float32")


def test_validation_ranks_usable_rows_of_the_split_only(recipe: Make, new_store: NewStore, tmp_path: Path) -> None:
    splits = ["train", "train", "val", "val", "val"] + ["train"] * 40
    store = new_store(tmp_path / "tiny.zarr", splits=splits)
    streams = resolve(recipe(), [store])
    found = validation_sets(streams, ("en",))["tiny"]
    assert found.rows["image"].tolist() == [2, 4]
    assert found.rows["audio"].tolist() == [2, 3, 4]
    assert found.pairs["text", "image"].tolist() == [[0, 0], [1, 0], [4, 1], [5, 1]]
    assert ("text", "audio") in found.pairs
    assert ("text", "audio") not in found.trained


def test_modality_without_usable_validation_rows_is_left_out(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    streams = resolve(recipe({"languages": ["de"]}), [new_store(tmp_path / "tiny.zarr")])
    found = validation_sets(streams, ("fr",))["tiny"]
    assert set(found.rows) == {"image", "audio"}
    measured = found.measure(State(recipe(), streams, CPU).student, CPU)
    directions = {name.partition("/")[0] for name in measured if name.endswith("/R@1")}
    assert directions == {"image-to-audio", "audio-to-image"}
    assert not any("among" in name for name in measured)


def test_labelled_items_are_classified_by_their_neighbours_both_ways(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    labels = [row % 4 for row in range(80)]
    labels[50] = -1  # of val
    labels[7] = -1  # of train
    store = new_store(tmp_path / "tiny.zarr", labels=labels)
    streams = resolve(recipe(), [store])
    found = validation_sets(streams, ("en",))["tiny"]
    # Row 3 is quarantined; captions and sounds have no labels.
    assert found.banks.keys() == {"image"}
    bank = found.banks["image"]
    assert bank.tolist() == [row for row in range(48) if row not in (3, 7)]
    student = State(recipe(), streams, CPU).student
    measured = found.measure(student, CPU)
    among = {name.partition("/")[0] for name in measured if "among" in name}
    assert among == {"image val among train", "image train among val"}

    asking = np.array([row for row in range(48, 64) if row != 50])
    rows = {"val": asking, "train": bank}
    vectors = {name: embed(student, store, "image", found.inputs["image"], of, CPU) for name, of in rows.items()}
    for one, other in (("val", "train"), ("train", "val")):
        sides = [(vectors[name], np.array(labels)[rows[name]]) for name in (one, other)]
        ids = store.manifest.column("image", "id", rows[other])
        expected = {hits.k: hits for hits in neighbour_hits(*sides[0], *sides[1], ids, (1, 3))}
        name = f"image {one} among {other}/"
        figures = {key.removeprefix(name): value for key, value in measured.items() if key.startswith(name)}
        assert figures == {
            "any@1": 100 * expected[1].any.mean(),
            "vote@1": 100 * expected[1].vote.mean(),
            "any@3": 100 * expected[3].any.mean(),
            "vote@3": 100 * expected[3].vote.mean(),
            "num_queries": len(rows[one]),
            "num_bank": len(rows[other]),
        }


def test_a_long_split_gives_the_bank_items_from_its_first_to_its_last(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    splits = ["train"] * 3000 + ["val"] * 4
    store = new_store(tmp_path / "tiny.zarr", splits=splits, labels=[0] * len(splits), with_audio=False)
    bank = validation_sets(resolve(recipe(), [store]), ("en",))["tiny"].banks["image"]
    assert (bank[0], bank[-1], len(bank)) == (0, 2999, 1024)
    assert (np.diff(bank) > 0).all()


def figures(**values: float) -> dict[str, float]:
    return {"rsum": 1.0, "mean_rank": 9.0, "tiny/text/spread": 0.5} | values


@pytest.fixture
def state(recipe: Make, store: TargetStore) -> State:
    return State(recipe(), resolve(recipe(), [store]), CPU)


def test_more_is_better_but_for_ranks(state: State) -> None:
    rsum = Validation()
    assert [judge(figures(rsum=value), rsum, state).is_best for value in (1.0, 1.0, 2.0, 1.5)] == [
        True,
        False,
        True,
        False,
    ]
    assert (state.best, state.num_worse) == (2.0, 1)
    state.best = None
    ranks = Validation(metric="mean_rank")
    assert [judge(figures(mean_rank=value), ranks, state).is_best for value in (9.0, 8.0, 8.5)] == [
        True,
        True,
        False,
    ]


def test_any_figure_may_be_the_metric_and_others_are_refused(state: State) -> None:
    assert judge(figures(), Validation(metric="tiny/text/spread"), state).score == 0.5
    with pytest.raises(
        ConfigError, match=r"validation.metric 'R@7' is no figure of this run; there are: rsum, mean_rank"
    ):
        judge(figures(), Validation(metric="R@7"), state)


def test_run_ends_when_patience_does(state: State) -> None:
    config = Validation(patience=2)
    for value in (1.0, 2.0, 1.9):
        judge(figures(rsum=value), config, state)
    assert not state.stopped
    judge(figures(rsum=2.0), config, state)
    assert state.stopped == "rsum has not been better than 2 for 2 validations"


def test_collapse_is_told_and_ends_the_run_if_asked(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    collapsed = figures(**{"tiny/text/spread": 0.01})
    judge(collapsed, Validation(), state)
    assert "the embeddings have collapsed: tiny/text/spread is 0.010, under 0.1" in capsys.readouterr().err
    assert not state.stopped
    judge(collapsed, Validation(collapse=Collapse(action="stop")), state)
    assert "have collapsed" in state.stopped


def test_spread_is_0_for_one_vector_and_1_for_opposite_ones() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert spread(np.repeat(vectors[:1], 20, axis=0)) == pytest.approx(0, abs=1e-3)
    assert spread(np.concatenate([vectors, -vectors])) == pytest.approx(1)
    assert spread(vectors) == pytest.approx(np.sqrt(vectors.astype(np.float64).var(axis=0).sum()))


def test_moving_average_is_measured_beside_the_student(recipe: Make, store: TargetStore) -> None:
    averaged = recipe({"ema": {"decay": 0.9}})
    streams = resolve(averaged, [store])
    state = State(averaged, streams, CPU)
    found = measure(validation_sets(streams, ("en",)), state)
    assert found["ema/rsum"] == found["rsum"]
    with torch.no_grad():
        for parameter in state.student.parameters():
            parameter.normal_()
    changed = measure(validation_sets(streams, ("en",)), state)
    assert changed["ema/tiny/image/spread"] == found["ema/tiny/image/spread"]
    assert changed["tiny/image/spread"] != found["tiny/image/spread"]
    trained = [f"tiny/{way}/R@1" for way in ("image-to-text", "text-to-image", "image-to-audio", "audio-to-image")]
    assert found["R@1"] == pytest.approx(np.mean([found[name] for name in trained]))


def test_verdict_shows_the_directions_behind_a_mean(recipe: Make, store: TargetStore) -> None:
    averaged = recipe({"ema": {"decay": 0.9}})
    streams = resolve(averaged, [store])
    state = State(averaged, streams, CPU)
    found = measure(validation_sets(streams, ("en",)), state)
    for metric in ("R@1", "ema/R@1"):
        state.best = None
        shown = str(judge(found, Validation(metric=metric), state))
        assert shown.startswith(f"{metric} {found[metric]:.4g} (best): tiny/image-to-text ")
        assert "ema/tiny" not in shown
    assert str(judge(found, Validation(metric="tiny/image/spread"), state)) == (
        f"tiny/image/spread {found['tiny/image/spread']:.4g}"
    )


def test_students_own_logits_are_held_against_the_labels(recipe: Make, new_store: NewStore, tmp_path: Path) -> None:
    labels = [row % 8 for row in range(80)]
    labels[50] = -1
    store = new_store(tmp_path / "tiny.zarr", labels=labels)
    streams = resolve(recipe(), [store])
    found = validation_sets(streams, ("en",))["tiny"]
    student = State(recipe(), streams, CPU).student.eval()
    accuracy = found.measure(student, CPU)["image/accuracy"]
    with torch.no_grad():
        logits = student({"image": found.inputs["image"].load(store, found.rows["image"])})["image/logits"]
    right = logits.argmax(1).numpy() == np.array(labels)[found.rows["image"]]
    assert accuracy == pytest.approx(100 * right[found.rows["image"] != 50].mean())
    unlabelled = new_store(tmp_path / "other.zarr")
    other = validation_sets(resolve(recipe(), [unlabelled]), ("en",))["tiny"]
    assert not any("accuracy" in name for name in other.measure(student, CPU))
