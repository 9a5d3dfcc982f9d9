"""A dataset that gained photographs: only these are computed, and nothing that was there is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from contract.views import Item
from pipeline import plan
from pipeline.worker import ShardWorker

OLD, NEW = range(600), range(600, 700)
INTERLEAVED = [number for k in NEW for number in (k, *range(6 * k - 3600, 6 * k - 3594))]


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before if after[name] != before[name]}


def shard_files(content: dict[str, bytes], shard: int) -> set[str]:
    return {name for name in content if name.startswith("image/") and f"/c/{shard}/" in name}


@pytest.fixture(scope="module")
def grown(large_once: Any) -> dict[str, bytes]:
    """The content of the large project's store after growth without interruption, kept as `grown.zarr`."""
    large_once.restore()
    large_once.describe([*OLD, *NEW])
    large_once.precompute()
    large_once.keep("grown.zarr")
    grown: dict[str, bytes] = large_once.restore("grown.zarr")
    return grown


def test_only_the_new_rows_are_computed(large) -> None:
    before = large.restore()
    files = {name: (large.store / name).stat().st_mtime_ns for name in before}
    large.describe([*OLD, *NEW])
    planned = large.call("plan", *large.arguments()[1:5]).out
    assert "300 rows to compute" in planned
    out = large.precompute()
    assert "image/teacher: 100 rows in" in out
    assert "text/tokens: 200 rows in" in out
    assert large.precompute().endswith("stores/tiny.zarr was complete already\n")

    after = large.content()
    untouched = shard_files(before, 0) | shard_files(before, 1)
    assert len(untouched) == 2 * 4  # two shards of four fields
    assert not untouched & changed(before, after)
    assert all((large.store / name).stat().st_mtime_ns == files[name] for name in untouched)
    assert large.call("verify", "stores/tiny.zarr").exit_code == 0


def test_photographs_among_the_old_ones_are_appended_all_the_same(large, grown: dict[str, bytes]) -> None:
    large.restore()
    large.describe(INTERLEAVED)
    large.precompute()
    assert large.content() == grown


def test_grown_store_holds_what_the_encoders_say(large, grown: dict[str, bytes]) -> None:
    large.restore()
    old = large.opened()
    kept = {name: old.load(f"image/teacher/{name}", OLD, views=1) for name in ("patch_embeddings", "logits")}
    large.restore("grown.zarr")
    store = large.opened()
    for name, values in kept.items():
        np.testing.assert_array_equal(store.load(f"image/teacher/{name}", OLD, views=1), values)
    assert store.manifest.column("image", "id", [0, 599, 600, 699]) == ["0", "599", "600", "699"]
    assert store.manifest.column("text", "id", [1199, 1200, 1201]) == ["599#1", "600#0", "600#1"]
    pairs = store.manifest.positives("image", "text")
    assert pairs[pairs[:, 0] == 605, 1].tolist() == [1210, 1211]
    assert len(pairs) == 1400
    encoder, rows = large.settings().encoders.image["teacher"], [600, 699]
    images = [encoder.view().load(Item(id="", file=large.data / f"images/{row}.png")) for row in rows]
    np.testing.assert_allclose(
        store.load("image/teacher/logits", rows), encoder.build("cpu")(images)["logits"], atol=1e-3
    )
    assert [entry.id for entry in store.quarantined("image/teacher")] == ["5", "300", "650"]


def test_killed_growth_continues_to_the_same_bytes(large, grown: dict[str, bytes]) -> None:
    large.restore()
    large.describe([*OLD, *NEW])
    commit = large.store / "precept/commits/image/teacher/000002.json"
    before = commit.read_bytes()
    large.run_until((large.store / "precept/manifest/items.image.1.arrow").exists)
    assert commit.read_bytes() == before
    large.precompute()
    assert large.content() == grown


def test_grown_shard_is_repaired_to_the_same_bytes(large, grown: dict[str, bytes]) -> None:
    large.restore("grown.zarr")
    (large.store / "image/teacher/logits/c/2/0/0").unlink()
    assert large.call("repair", "stores/tiny.zarr", "--engine", "local").exit_code == 0
    assert large.content() == grown


def test_a_batch_never_reaches_over_what_was_added_later(project) -> None:
    # Otherwise the rows of a shard that is computed again would be of other batches than those that were kept.
    project.describe(range(20))
    project.precompute()
    project.describe(range(30))
    project.precompute()
    store, settings = project.opened(), project.settings()
    store.discard("image/teacher", 0)
    task = plan.task(
        store.fieldsets["image/teacher"], settings.encoders.image["teacher"], settings.views, store.manifest, store
    )
    assert task.fieldset.batch_size == 40
    progresses = list(ShardWorker(store, task, settings.workers).compute([0]))
    assert [progress.num_rows for progress in progresses] == [20, 10, 0]  # the last one says that all is written


def photograph_removed(project: Any) -> None:
    project.describe(range(1, 31))


def photograph_replaced(project: Any) -> None:
    (project.data / "images/0.png").write_bytes((project.data / "images/1.png").read_bytes())


def caption_changed(project: Any) -> None:
    captions = json.loads((project.data / "captions.json").read_text())
    captions["images"][0]["sentences"][0]["raw"] = "something else"
    (project.data / "captions.json").write_text(json.dumps(captions))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (photograph_removed, "1 of 30 image items are gone, such as '0'"),
        (photograph_replaced, "1 image items have another size_bytes, such as '0'"),
        (caption_changed, "1 text items have another text, such as '0#0': 'something else'"),
    ],
)
def test_what_was_there_before_must_be_there_still(project, change: Callable[[Any], None], told: str) -> None:
    project.precompute()
    before = project.content()
    change(project)
    for verb in ("precompute", "plan"):
        message = project.error_of(verb, *project.arguments()[1:5])
        assert "stores/tiny.zarr holds another dataset or another state of it" in message
        assert told in message
    assert project.content() == before


def test_second_fieldset_grows_by_its_own_configuration(project) -> None:
    project.describe(range(20))
    project.precompute()
    other = {"image": {"other": project.encoders["image"]["teacher"] | {"batch_size": 7}}}
    project.write("other.yaml", {"encoders": other, "gate": {"num_samples": 0}})
    project.describe(range(30))
    assert "image/other: 30 rows" in project.precompute("--config", "other.yaml")
    assert "image/teacher: 1 of 1 shards missing" in project.call("show", "stores/tiny.zarr").out
    assert "image/teacher: 10 rows" in project.precompute()
    teacher, other = (project.opened().load(f"image/{name}/logits", range(30)) for name in ("teacher", "other"))
    np.testing.assert_allclose(teacher, other, atol=1e-3)
