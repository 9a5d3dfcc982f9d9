from dataclasses import replace
from pathlib import Path

import pytest

from contract.errors import DataError, StoreError
from contract.manifest import Manifest, items_table, pair_kind, pairs_table


def scenes(num_images: int = 4, split_of_last: str = "test") -> Manifest:
    """Images with two captions each (en, de) and a sound each; the last image is of another split."""
    splits = ["train"] * (num_images - 1) + [split_of_last]
    return Manifest(
        dataset="tiny",
        protocol="tiny",
        items={
            "image": items_table(
                {"id": [f"i{n}" for n in range(num_images)], "split": splits, "label": range(num_images)}
            ),
            "text": items_table(
                {
                    "id": [f"i{n}#{language}" for n in range(num_images) for language in ("en", "de")],
                    "text": [f"caption {n} {language}" for n in range(num_images) for language in ("en", "de")],
                    "language": ["en", "de"] * num_images,
                    "split": [split for split in splits for _ in range(2)],
                }
            ),
            "audio": items_table({"id": [f"s{n}" for n in range(num_images)], "split": splits}),
        },
        pairs=dict(
            [
                pairs_table("image", "text", [(n, 2 * n + k) for n in range(num_images) for k in range(2)]),
                pairs_table("audio", "image", [(n, n) for n in range(num_images)]),
            ]
        ),
        media_root="somewhere",
    )


def test_written_manifest_reads_back_equal(tmp_path: Path) -> None:
    manifest = scenes()
    manifest.write(tmp_path)
    read = Manifest.read(tmp_path)
    assert read.fingerprint == manifest.fingerprint
    assert read.is_intact()
    assert read.items["text"].equals(manifest.items["text"])
    assert read.pairs["image-text"].equals(manifest.pairs["image-text"])
    assert read.media_root == "somewhere"


def test_altered_table_is_not_intact(tmp_path: Path) -> None:
    scenes().write(tmp_path)
    path = tmp_path / "items.text.arrow"
    path.write_bytes(path.read_bytes().replace(b"caption 1 en", b"caption 9 en"))
    assert not Manifest.read(tmp_path).is_intact()


def test_table_of_another_length_is_refused(tmp_path: Path) -> None:
    scenes().write(tmp_path)
    scenes(5).write(tmp_path / "other")
    (tmp_path / "other/items.text.arrow").replace(tmp_path / "items.text.arrow")
    with pytest.raises(StoreError, match="10 rows"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_damaged_description_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match="missing or damaged"):
        Manifest.read(tmp_path)


def test_fingerprint_depends_on_content_and_not_on_the_place() -> None:
    manifest = scenes()
    assert replace(manifest, media_root="elsewhere").fingerprint == manifest.fingerprint
    assert scenes(split_of_last="val").fingerprint != manifest.fingerprint
    assert replace(manifest, pairs={}).fingerprint != manifest.fingerprint
    # The boundary between two captions is part of the content.
    a = items_table({"id": ["1", "2"], "split": ["train"] * 2, "text": ["ab", "c"]})
    b = items_table({"id": ["1", "2"], "split": ["train"] * 2, "text": ["a", "bc"]})
    assert replace(manifest, items={"text": a}).fingerprint != replace(manifest, items={"text": b}).fingerprint


def test_rows_of_a_grown_manifest_keep_their_fingerprint() -> None:
    assert scenes(4).rows_fingerprint("image", range(2)) == scenes(9).rows_fingerprint("image", range(2))
    assert scenes(4).rows_fingerprint("image", range(1, 3)) != scenes(4).rows_fingerprint("image", range(2))


def test_rows_are_chosen_by_split_and_language() -> None:
    manifest = scenes()
    assert manifest.rows("image", "train").tolist() == [0, 1, 2]
    assert manifest.rows("text", "test").tolist() == [6, 7]
    assert manifest.rows("text", "train", ["de"]).tolist() == [1, 3, 5]
    assert manifest.rows("image", "test", ["de"]).tolist() == [3]


def test_positives_are_found_either_way_and_through_the_image() -> None:
    manifest = scenes(2)
    assert manifest.positives("image", "text").tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]]
    assert manifest.positives("text", "image").tolist() == [[0, 0], [1, 0], [2, 1], [3, 1]]
    assert manifest.positives("text", "audio").tolist() == [[0, 0], [1, 0], [2, 1], [3, 1]]
    assert manifest.positives("audio", "text").tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]]
    assert replace(manifest, pairs={}).positives("image", "text").shape == (0, 2)


def test_selected_splits_keep_their_pairs() -> None:
    selected = scenes().select(["test"])
    assert [selected.num_rows(name) for name in ("image", "text", "audio")] == [1, 2, 1]
    assert selected.positives("image", "text").tolist() == [[0, 0], [0, 1]]
    assert selected.ids("text").tolist() == ["i3#en", "i3#de"]
    assert selected.column("image", "label") == [3]


def test_what_no_dataset_may_be_is_refused() -> None:
    manifest = scenes()
    with pytest.raises(DataError, match="manifest is empty"):
        replace(manifest, items={}, pairs={}).check()
    twice = items_table({"id": ["a", "a"], "split": ["train"] * 2})
    with pytest.raises(DataError, match="'a'"):
        replace(manifest, items={"image": twice}, pairs={}).check()
    with pytest.raises(DataError, match="rows that don't exist"):
        replace(manifest, pairs=dict([pairs_table("image", "text", [(99, 0)])])).check()


def test_pair_kinds_have_one_spelling() -> None:
    assert pair_kind("text", "image") == "image-text"
    assert pair_kind("audio", "image") == "image-audio"
    assert pair_kind("text", "audio") == "audio-text"
