from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from contract.errors import ConfigError, DataError, StoreError
from contract.store import TargetStore
from trainer.batch import Batch, Tokens
from trainer.device import Device
from trainer.embed import embed
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.streams import Streams

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]
Rows = npt.NDArray[np.int64]


def same(first: Batch, second: Batch) -> bool:
    return first.pair == second.pair and all(
        torch.equal(first.inputs[modality].values, second.inputs[modality].values) for modality in first.pair
    )


def drawn(streams: Streams, steps: range) -> list[tuple[str, Rows, Rows]]:
    """(kind, anchors, partners) of each step."""
    found = [streams.draw(step) for step in steps]
    return [
        (stream.kind, what.shown.rows[stream.pair[0]], what.shown.rows[stream.pair[1]]) for stream, what in found
    ]


def load(streams: Streams, step: int) -> Batch:
    return streams.read(step).to("cpu")


def of_rank(streams: Streams, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Streams:
    return Streams(
        streams.streams, streams.stores, batch_size, streams.seed, rank=rank, num_ranks=num_ranks, verify_every=0
    )


def rows_and_views(values: Tensor) -> tuple[Rows, Rows]:
    """What the values of `coded_store` say of where they came from, int64 [n] each."""
    codes = values.flatten(1)
    assert (codes == codes[:, :1]).all()
    rows, views = np.divmod(codes[:, 0].numpy().astype(np.int64), 10)
    return rows, views


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
    later = [load(streams, step) for step in (7, 3)]
    again = resolve(recipe(), [store])
    from_the_start = [load(again, step) for step in range(8)]
    assert same(from_the_start[3], later[1])
    assert same(from_the_start[7], later[0])
    other = resolve(recipe({"seed": 1}), [store])
    assert not same(load(other, 3), later[1])


def test_sequences_are_cut_to_the_longest_of_the_batch(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe({"batch_size": 2}), [store])
    for step in range(20):
        batch = load(streams, step)
        tokens = batch.inputs[batch.pair[1]]
        assert tokens.length is not None
        assert tokens.values.shape[1] == tokens.length.max()


def test_targets_are_the_anchors(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    ((_, anchors, _),) = drawn(streams, range(1))
    logits = load(streams, 0).targets["logits"]
    np.testing.assert_array_equal(logits, store.load("image/teacher/logits", anchors))


@pytest.mark.parametrize(("num_ranks", "batch_size"), [(2, 8), (3, 5), (4, 2), (2, 30), (5, 16)])
def test_ranks_share_out_the_batches_of_one_rank(
    recipe: Make, store: TargetStore, num_ranks: int, batch_size: int
) -> None:
    streams = resolve(recipe(), [store])  # 47 anchors of either kind: less than one batch of 2 x 30 or 5 x 16
    alone = of_rank(streams, num_ranks * batch_size)
    ranks = [of_rank(streams, batch_size, rank, num_ranks) for rank in range(num_ranks)]
    assert {each.steps_per_epoch for each in ranks} == {alone.steps_per_epoch}
    for step in range(3 * alone.steps_per_epoch):
        (whole,) = drawn(alone, range(step, step + 1))
        parts = [drawn(each, range(step, step + 1))[0] for each in ranks]
        assert {kind for kind, _, _ in parts} == {whole[0]}
        for place in (1, 2):
            assert np.array_equal(np.concatenate([part[place] for part in parts]), whole[place])
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == len(set(whole[1].tolist())) == min(47, num_ranks * batch_size)


def test_step_reads_another_view_of_a_row_in_another_epoch(
    recipe: Make, tmp_path: Path, coded_store: NewStore
) -> None:
    streams = resolve(recipe({"batch_size": 47}), [coded_store(tmp_path / "coded.zarr")])
    seen: dict[tuple[str, int], list[int]] = {}
    for step in range(2 * 60):
        batch = load(streams, step)
        for modality in {"image", "audio"} & set(batch.pair):
            for row, view in np.stack(rows_and_views(batch.inputs[modality].values)).T.tolist():
                seen.setdefault((modality, row), []).append(view)
    counts = {key: Counter(views) for key, views in seen.items()}
    assert len(counts) == 2 * 48
    for (modality, _), views in counts.items():
        assert set(views) == {1, 2, 3}
        # 60 sounds and 120 images: no view is rarer than a fifth of what is to be expected.
        assert min(views.values()) > (8 if modality == "image" else 4)


def test_rows_views_and_values_are_those_drawn_and_targets_are_of_the_view_shown(
    recipe: Make, tmp_path: Path, coded_store: NewStore
) -> None:
    streams = resolve(recipe(), [coded_store(tmp_path / "coded.zarr")])
    for step in range(3 * streams.steps_per_epoch):
        stream, what = streams.draw(step)
        batch = load(streams, step)
        for modality in stream.pair:
            rows, views = rows_and_views(batch.inputs[modality].values)
            assert np.array_equal(rows, what.shown.rows[modality])
            assert np.array_equal(views, np.broadcast_to(what.shown.views[modality], len(rows)))
        shown = rows_and_views(batch.inputs["image"].values)
        np.testing.assert_array_equal(rows_and_views(batch.targets["logits"]), shown)
        assert set(shown[1].tolist()) <= {1, 2, 3}
        if stream.kind == "image-text":
            assert what.shown.views["text"] == 0


def test_views_and_partners_are_drawn_independently(recipe: Make, tmp_path: Path, coded_store: NewStore) -> None:
    store = coded_store(tmp_path / "coded.zarr")
    streams = resolve(recipe({"batch_size": 48, "streams": [{"pair": "image-audio"}]}), [store])
    together: Counter[tuple[int, int]] = Counter()
    for step in range(100):
        _, what = streams.draw(step)
        image, audio = (np.asarray(what.shown.views[modality]).tolist() for modality in ("image", "audio"))
        together.update(zip(image, audio, strict=True))
    assert len(together) == 9
    assert max(together.values()) < 1.3 * min(together.values())


def test_others_are_the_same_items_in_another_view_or_another_caption(
    recipe: Make, tmp_path: Path, coded_store: NewStore
) -> None:
    streams = resolve(recipe(), [coded_store(tmp_path / "coded.zarr")])
    streams.streams = tuple(replace(stream, shows_others=True) for stream in streams.streams)
    for step in range(3 * streams.steps_per_epoch):
        stream, what = streams.draw(step)
        assert what.others is not None
        batch = load(streams, step)
        for modality in stream.pair:
            rows, views = rows_and_views(batch.others[modality].values)
            first_rows, first_views = rows_and_views(batch.inputs[modality].values)
            assert np.array_equal(rows, what.others.rows[modality])
            if modality == "text":  # two captions an image in each language
                assert not (rows == first_rows).any()
                kind = stream.store.manifest.positives("image", "text")
                pairs = set(map(tuple, kind.tolist()))
                assert all(
                    pair in pairs for pair in zip(what.shown.rows["image"].tolist(), rows.tolist(), strict=True)
                )
            else:
                assert np.array_equal(rows, first_rows)
                assert not (views == first_views).any()


def test_a_stream_may_be_of_one_modality(recipe: Make, store: TargetStore) -> None:
    kinds = [{"pair": "image"}, {"pair": "text"}]
    streams = resolve(
        recipe({"streams": kinds, "objectives": {"rank": {"kind": "ranking"}}, "targets": {}}), [store]
    )
    assert {stream.kind for stream, _ in map(streams.draw, range(streams.steps_per_epoch))} == {"image", "text"}


def test_places_number_the_anchors_of_all_streams(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe({"batch_size": 8}), [store])
    seen: dict[range, set[int]] = {}
    for step in range(6 * streams.steps_per_epoch):
        batch = load(streams, step)
        seen.setdefault(batch.peers, set()).update(batch.places.tolist())
    assert sorted(place for places in seen.values() for place in places) == list(range(streams.num_places))
    assert all(places == set(peers) for peers, places in seen.items())


def test_evaluation_views_are_read_on_request(recipe: Make, tmp_path: Path, coded_store: NewStore) -> None:
    streams = resolve(recipe({"views": "evaluation"}), [coded_store(tmp_path / "coded.zarr")])
    for step in range(streams.steps_per_epoch):
        batch = load(streams, step)
        for values in (*(tokens.values for tokens in batch.inputs.values()), *batch.targets.values()):
            assert set(rows_and_views(values)[1].tolist()) == {0}


def test_evaluation_view_is_among_all_views(recipe: Make, tmp_path: Path, coded_store: NewStore) -> None:
    streams = resolve(recipe({"views": "all"}), [coded_store(tmp_path / "coded.zarr")])
    seen = set()
    for step in range(6 * streams.steps_per_epoch):
        batch = load(streams, step)
        image = rows_and_views(batch.inputs["image"].values)[1].tolist()
        seen.update(image)
        assert rows_and_views(batch.targets["logits"])[1].tolist() == image
    assert seen == {0, 1, 2, 3}


class FirstValue(nn.Module):
    """A student whose embedding of an item is its first token's first value."""

    def forward(self, inputs: dict[str, Tokens]) -> dict[str, Tensor]:
        return {f"{modality}/embedding": tokens.values[:, 0, :1] for modality, tokens in inputs.items()}


def test_validation_standardisation_and_embeddings_are_of_the_evaluation_view(
    recipe: Make, tmp_path: Path, coded_store: NewStore
) -> None:
    store = coded_store(tmp_path / "coded.zarr")
    streams = resolve(recipe(), [store])
    ((_, inputs),) = streams.stores
    rows = np.array([70, 5, 61])
    embeddings = embed(FirstValue(), store, "image", inputs["image"], rows, Device(name="cpu", precision="float32"))
    np.testing.assert_array_equal(embeddings[:, 0], 10 * rows)
    for modality in ("image", "audio"):
        assert set(rows_and_views(streams.sample(modality, 40).values)[1].tolist()) == {0}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"num_target_views": 0}, "num_views: 0, not 3"),
        ({"num_target_views": 2}, "num_views: 2, not 3"),
        ({"target_seed": 1}, r"augmentation\.seed: 1, not 0"),
    ],
)
def test_target_of_other_views_than_the_student_is_shown_is_refused(
    recipe: Make, tmp_path: Path, coded_store: NewStore, changes: dict[str, int], difference: str
) -> None:
    store = coded_store(tmp_path / "coded.zarr", **changes)
    with pytest.raises(ConfigError, match=rf"targets\.logits: .*not of the same views.*{difference}"):
        resolve(recipe(), [store])
    batch = load(resolve(recipe({"views": "evaluation"}), [store]), 0)
    shown = rows_and_views(batch.inputs["image"].values)
    np.testing.assert_array_equal(rows_and_views(batch.targets["logits"]), shown)


def test_checksums_are_verified_in_the_first_epoch_and_in_every_so_manieth(
    recipe: Make, store: TargetStore
) -> None:
    def epochs(every: int) -> list[int]:
        streams = resolve(recipe({"verify_every_epochs": every}), [store])
        steps = range(7 * streams.steps_per_epoch)
        return sorted({step // streams.steps_per_epoch for step in steps if streams.draw(step)[1].check})

    assert epochs(3) == [0, 3, 6]
    assert epochs(10) == [0]
    assert epochs(0) == []


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
