from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from contract.ranking import neighbour_hits
from contract.store import TargetStore
from trainer.device import Device
from trainer.embed import embed
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.state import State
from trainer.validate import validation_sets

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
    assert set(measured.retrieval) == {"image-to-audio", "audio-to-image"}
    assert not measured.neighbours


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
    measured = found.measure(student, CPU).neighbours
    assert set(measured) == {"image val among train", "image train among val"}

    asking = np.array([row for row in range(48, 64) if row != 50])
    rows = {"val": asking, "train": bank}
    vectors = {name: embed(student, store, "image", found.inputs["image"], of, CPU) for name, of in rows.items()}
    for one, other in (("val", "train"), ("train", "val")):
        sides = [(vectors[name], np.array(labels)[rows[name]]) for name in (one, other)]
        ids = store.manifest.column("image", "id", rows[other])
        expected = {hits.k: hits for hits in neighbour_hits(*sides[0], *sides[1], ids, (1, 3))}
        figures = measured[f"image {one} among {other}"]
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
