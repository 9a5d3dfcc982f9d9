from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.errors import ConfigError, DataError, StoreError
from contract.store import TargetStore
from trainer.batch import Batch
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.streams import Streams

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]


def same(first: Batch, second: Batch) -> bool:
    return first.pair == second.pair and all(
        torch.equal(first.inputs[modality].values, second.inputs[modality].values) for modality in first.pair
    )


def drawn(streams: Streams, steps: range) -> list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(kind, anchors, partners) of each step, as `Streams.load` draws them."""
    seen = []

    def record(stream: Any) -> Any:
        return lambda anchors, partners: seen.append((stream.kind, anchors, partners))

    for stream in streams.streams:
        object.__setattr__(stream, "load", record(stream))
    for step in steps:
        streams.load(step)
    return seen


def test_auto_streams_are_every_pair_kind_with_images_in_alternation(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    kinds = [kind for kind, _, _ in drawn(streams, range(streams.steps_per_epoch))]
    assert Counter(kinds) == {"image-text": 2, "image-audio": 2}
    assert kinds[0] != kinds[1]


def test_epoch_shows_each_anchor_at_most_once_and_only_true_pairs(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    positives = {
        kind: {tuple(pair) for pair in store.manifest.positives(*kind.split("-")).tolist()}
        for kind in ("image-text", "image-audio")
    }
    for kind in positives:
        rows = [(a, p) for k, a, p in drawn(streams, range(streams.steps_per_epoch)) if k == kind]
        anchors = np.concatenate([a for a, _ in rows])
        assert len(np.unique(anchors)) == len(anchors) == 32
        for a, p in rows:
            assert set(zip(a.tolist(), p.tolist(), strict=True)) <= positives[kind]


def test_partners_are_drawn_anew_in_each_epoch(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe({"batch_size": 47}), [store])
    captions: dict[int, set[int]] = {}
    for kind, anchors, partners in drawn(streams, range(40)):
        if kind == "image-text":
            for anchor, partner in zip(anchors.tolist(), partners.tolist(), strict=True):
                captions.setdefault(anchor, set()).add(partner)
    assert all(len(seen) == 2 for seen in captions.values())


def test_only_training_rows_in_the_wanted_languages_that_are_not_quarantined(
    recipe: Make, store: TargetStore
) -> None:
    manifest = store.manifest
    split, language = np.array(manifest.column("text", "split")), np.array(manifest.column("text", "language"))
    (english,) = (s for s in resolve(recipe(), [store]).streams if s.kind == "image-text")
    assert set(split[english.partners]) == {"train"}
    assert set(language[english.partners]) == {"en"}
    assert 3 not in english.anchors
    assert len(english.anchors) == 47
    (every,) = (s for s in resolve(recipe({"languages": "all"}), [store]).streams if s.kind == "image-text")
    assert set(language[every.partners]) == {"en", "de"}


def test_batch_depends_on_seed_and_step_alone(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    later = [streams.load(step) for step in (7, 3)]
    again = resolve(recipe(), [store])
    assert same(again.load(3), later[1])
    assert same(again.load(7), later[0])
    other = resolve(recipe({"seed": 1}), [store])
    assert not same(other.load(3), later[1])


def test_prefetched_batches_are_the_loaded_ones_and_the_thread_ends(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    for step, batch in zip(range(2, 9), streams.prefetched(2, 9), strict=True):
        assert same(batch, streams.load(step))
    unfinished = streams.prefetched(0, 1000)
    next(unfinished)
    unfinished.close()  # type: ignore[attr-defined]
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_error_of_the_reading_thread_reaches_the_trainer(recipe: Make, tmp_path: Path, new_store: NewStore) -> None:
    streams = resolve(recipe(), [new_store(tmp_path / "tiny.zarr")])
    for file in tmp_path.glob("tiny.zarr/image/teacher/patch_embeddings/c/*/*/*"):
        file.write_bytes(b"")
    with pytest.raises(StoreError):
        list(streams.prefetched(0, 4))


def test_sequences_are_cut_to_the_longest_of_the_batch(recipe: Make, store: TargetStore) -> None:
    batch = resolve(recipe({"batch_size": 2}), [store])
    for step in range(20):
        tokens = batch.load(step).inputs[batch.load(step).pair[1]]
        assert tokens.length is not None
        assert tokens.values.shape[1] == tokens.length.max()


def test_targets_are_the_anchors(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    stream = streams.streams[0]
    anchors, partners = stream.rows((0, 0), 0, 8)
    batch = stream.load(anchors, partners)
    np.testing.assert_array_equal(batch.targets["logits"], store.load("image/teacher/logits", anchors))


def test_weights_share_out_the_steps(recipe: Make, store: TargetStore) -> None:
    listed = [{"pair": "image-text", "weight": 3.0}, {"pair": "image-audio", "weight": 1.0}]
    streams = resolve(recipe({"streams": listed, "batch_size": 4}), [store])
    kinds = Counter(kind for kind, _, _ in drawn(streams, range(streams.steps_per_epoch)))
    assert streams.steps_per_epoch == 22
    assert kinds == {"image-text": 16, "image-audio": 6}


def test_streams_of_two_stores(recipe: Make, store: TargetStore, tmp_path: Path, new_store: NewStore) -> None:
    other = new_store(tmp_path / "other.zarr", dataset="other", seed=5)
    listed = [{"pair": "image-text", "store": "tiny"}, {"pair": "image-audio", "store": str(other.path)}]
    streams = resolve(recipe({"streams": listed}), [store, other])
    assert [(s.kind, s.store.manifest.dataset) for s in streams.streams] == [
        ("image-text", "tiny"),
        ("image-audio", "other"),
    ]
    assert len(resolve(recipe(), [store, other]).streams) == 4


def test_store_without_sounds_gives_image_text_alone(recipe: Make, tmp_path: Path, new_store: NewStore) -> None:
    streams = resolve(recipe(), [new_store(tmp_path / "tiny.zarr", with_audio=False)])
    assert [stream.kind for stream in streams.streams] == ["image-text"]


def test_incomplete_store_is_refused(recipe: Make, tmp_path: Path, new_store: NewStore) -> None:
    store = new_store(tmp_path / "tiny.zarr", shards_left_out=("text/teacher",))
    with pytest.raises(StoreError, match=r"text/teacher lacks 1 of 10 shards.*pipeline precompute"):
        resolve(recipe(), [store])


def test_missing_target_is_refused_with_the_list_of_what_is_there(
    recipe: Make, tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "tiny.zarr", with_logits=False)
    with pytest.raises(StoreError, match=r"no image field 'logits'.*image/teacher/patch_embeddings"):
        resolve(recipe(), [store])


def test_objective_whose_target_the_recipe_does_not_read_is_refused(recipe: Make, store: TargetStore) -> None:
    with pytest.raises(ConfigError, match=r"objective `kd` needs a target `logits`.*image/teacher/logits"):
        resolve(recipe({"targets": {}}), [store])


def test_language_without_captions_is_refused(recipe: Make, store: TargetStore) -> None:
    with pytest.raises(DataError, match=r"image-text.*'fr'.*'en': 160"):
        resolve(recipe({"languages": ["fr"]}), [store])


def test_stream_that_no_store_has_is_refused(recipe: Make, store: TargetStore) -> None:
    with pytest.raises(ConfigError, match=r"streams\.0.*audio-text.*image-text, image-audio"):
        resolve(recipe({"streams": [{"pair": "audio-text"}]}), [store])


def test_recipe_that_reads_no_pair_of_the_store_is_refused(recipe: Make, store: TargetStore) -> None:
    with pytest.raises(DataError, match="no pairs of an image"):
        resolve(recipe({"inputs": {"image": "patch_embeddings"}}), [store])


def test_stream_whose_modality_has_no_input_is_refused(recipe: Make, store: TargetStore) -> None:
    changes = {"inputs": {"image": "patch_embeddings"}, "streams": [{"pair": "image-text"}]}
    with pytest.raises(ConfigError, match="stream image-text: `inputs` has no text, only image"):
        resolve(recipe(changes), [store])


def test_two_stores_of_one_dataset_are_refused(
    recipe: Make, store: TargetStore, tmp_path: Path, new_store: NewStore
) -> None:
    other = new_store(tmp_path / "other.zarr")
    with pytest.raises(ConfigError, match="both hold dataset tiny"):
        resolve(recipe(), [store, other])


def test_stores_of_different_encoders_are_not_mixed(
    recipe: Make, store: TargetStore, tmp_path: Path, new_store: NewStore
) -> None:
    other = new_store(tmp_path / "other.zarr", dataset="other", model="another")
    with pytest.raises(ConfigError, match=r"input image: .*recipe\.model: 'another', not 'drawn'"):
        resolve(recipe(), [store, other])
    wide = {"image": (4, 9), "audio": (3, 5), "text": (5, 7)}
    wider = new_store(tmp_path / "wider.zarr", dataset="wider", shapes=wide)
    with pytest.raises(ConfigError, match=r"shape: \[4, 9\], not \[4, 6\]"):
        resolve(recipe(), [store, wider])


def test_store_that_no_stream_reads_is_refused(
    recipe: Make, store: TargetStore, tmp_path: Path, new_store: NewStore
) -> None:
    other = new_store(tmp_path / "other.zarr", dataset="other", with_audio=False)
    with pytest.raises(ConfigError, match=r"other\.zarr was given, but no stream of recipe tiny reads it"):
        resolve(recipe({"streams": [{"pair": "image-audio"}]}), [store, other])


def test_modality_that_was_not_computed_is_left_out(recipe: Make, tmp_path: Path, new_store: NewStore) -> None:
    path = new_store(tmp_path / "tiny.zarr").path
    shutil.rmtree(path / "audio/teacher")
    assert [stream.kind for stream in resolve(recipe(), [TargetStore.open(path)]).streams] == ["image-text"]


def test_store_is_embedded_in_every_modality_that_any_store_trains(
    recipe: Make, store: TargetStore, tmp_path: Path, new_store: NewStore
) -> None:
    other = new_store(tmp_path / "other.zarr", dataset="other")
    streams = [{"pair": "image-text", "store": "tiny"}, {"pair": "image-audio", "store": "other"}]
    resolved = resolve(recipe({"streams": streams}), [store, other])
    assert [set(inputs) for _, inputs in resolved.stores] == [{"image", "text", "audio"}] * 2


def test_single_pair_is_refused(recipe: Make, tmp_path: Path, new_store: NewStore) -> None:
    alone = new_store(tmp_path / "tiny.zarr", splits=["train", "val", "val", "val", "test"])
    with pytest.raises(DataError, match="1 image items with a usable text"):
        resolve(recipe(), [alone])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs.text": "length"}, r"inputs\.text: .*text/teacher/length of shape \[\]"),
        ({"targets.logits": "patch_embeddings"}, r"targets\.logits: .*a vector for each item is expected"),
    ],
)
def test_field_of_another_shape_is_refused(
    recipe: Make, store: TargetStore, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(recipe(changes), [store])
