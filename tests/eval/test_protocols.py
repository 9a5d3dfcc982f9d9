from __future__ import annotations

import numpy as np
import pytest

from contract.errors import ConfigError, DataError
from contract.manifest import Manifest, items_table, pairs_table
from eval import protocols
from eval.embedded import Embedded, Items


def split_of(
    dataset: str, num_images: int, *, captions: int = 5, split: str = "test", left_out: tuple[int, ...] = ()
) -> Embedded:
    """A split of images with captions, between images of another one; each vector is the number of its image."""
    other = ["val" if split == "test" else "test"] * 3
    splits = [*other, *[split] * num_images]
    owners = np.repeat(np.arange(len(splits)), captions)
    manifest = Manifest(
        dataset=dataset,
        protocol=dataset,
        items={
            # The order of the split is not that of the ids.
            "image": items_table({"id": [f"{-i % 7}-{i}" for i in range(len(splits))], "split": splits}),
            "text": items_table(
                {
                    "id": [f"c{i}" for i in range(len(owners))],
                    "text": ["a caption"] * len(owners),
                    "language": ["en"] * len(owners),
                    "split": [splits[owner] for owner in owners],
                }
            ),
        },
        pairs=dict([pairs_table("image", "text", np.stack([owners, np.arange(len(owners))], axis=1))]),
    )
    rows = {modality: manifest.rows(modality, split) for modality in ("image", "text")}
    rows["image"] = np.delete(rows["image"], left_out)
    items = {
        modality: Items(
            rows=found,
            ids=np.array(manifest.column(modality, "id", found), np.str_),
            embeddings=(found if modality == "image" else owners[found]).astype(np.float32)[:, None],
            num_quarantined=0,
        )
        for modality, found in rows.items()
    }
    return Embedded(manifest=manifest, split=split, language="en", items=items)


@pytest.mark.parametrize("dataset", ["flickr8k", "flickr30k", "flickr30k_tokens", "multi30k"])
def test_a_thousand_test_images_of_flickr_are_flickr_1k(dataset):
    chosen, beside = protocols.choose(None, split_of(dataset, 1000))
    assert (chosen.name, beside) == ("flickr-1k", ())


def test_coco_has_five_folds_beside_the_whole():
    chosen, beside = protocols.choose(None, split_of("coco", 5000))
    assert (chosen.name, [other.name for other in beside]) == ("coco-5k", ["coco-1k"])


@pytest.mark.parametrize(
    ("dataset", "num_images", "options"),
    [
        ("flickr8k", 999, {}),
        ("flickr8k", 1000, {"split": "val"}),
        # One caption for each image is another, easier or harder, task.
        ("flickr8k", 1000, {"captions": 1}),
        ("coco", 1000, {}),
        ("coco2017", 5000, {}),
        ("scenes", 500, {}),
    ],
)
def test_what_is_no_known_gallery_goes_by_its_own_name(dataset, num_images, options):
    assert protocols.choose(None, split_of(dataset, num_images, **options))[0].name == dataset


def test_a_name_is_taken_for_a_dataset_of_another_name_if_its_size_is_right():
    assert protocols.choose("flickr-1k", split_of("ours", 1000))[0].name == "flickr-1k"
    assert protocols.choose("coco-1k", split_of("ours", 5000))[0].num_folds == 5


@pytest.mark.parametrize(
    ("name", "split", "found"),
    [
        ("flickr-1k", split_of("flickr8k", 990), "flickr8k has 990 images in its split test"),
        ("coco-1k", split_of("coco", 1000), "in 5 folds of 1,000; coco has 1,000 images in its split test"),
        ("coco-5k", split_of("coco", 5000, split="val"), "coco is evaluated on its split val here"),
        ("flickr-1k", split_of("flickr8k", 1000, captions=2), "has 1,000 images with fewer captions in 'en'"),
        ("scenes", split_of("coco", 10), "it is of the dataset scenes; this is coco"),
    ],
)
def test_the_wrong_gallery_is_refused_with_what_was_found(name, split, found):
    with pytest.raises(DataError, match=f"--protocol {name}: .*{found}"):
        protocols.choose(name, split)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="there are: flickr-1k, coco-5k, coco-1k, scenes, toy"):
        protocols.choose("coco-2k", split_of("toy", 3))


def test_folds_are_disjoint_thousands_in_the_order_of_the_split():
    split = split_of("coco", 5000)
    folds = list(protocols.folds(protocols.COCO_1K, split))
    assert [len(fold.items["image"].rows) for fold in folds] == [1000] * 5
    assert np.concatenate([fold.items["image"].rows for fold in folds]).tolist() == list(range(3, 5003))
    for fold in folds:
        owners = fold.items["text"].embeddings.ravel()
        assert owners.tolist() == np.repeat(fold.items["image"].rows, 5).tolist()
        assert len(fold.positives("text", "image")) == 5000


def test_an_image_that_is_left_out_moves_none_to_another_fold():
    folds = list(protocols.folds(protocols.COCO_1K, split_of("coco", 5000, left_out=(0, 1, 2500))))
    assert [len(fold.items["image"].rows) for fold in folds] == [998, 1000, 999, 1000, 1000]
    assert folds[1].items["image"].rows[0] == 1003
