import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from contract.errors import DataError
from contract.manifest import ITEMS, Manifest, Segments, items_table, pairs_table
from contract.records import DamagedRecordError


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
        num_classes=num_images,
    )


def contents(manifest: Manifest, written: Segments | None = None) -> dict[str, bytes]:
    """The content of every file."""
    found = {}
    for name, content in manifest.files(written).items():
        file = io.BytesIO(content if isinstance(content, bytes) else b"")
        if not isinstance(content, bytes):
            content.write(file)
        found[name] = file.getvalue()
    return found


def write(path: Path, files: dict[str, bytes]) -> Callable[[str, int], Path]:
    for name, content in files.items():
        (path / name).write_bytes(content)
    return lambda name, _: path / name


def test_written_manifest_reads_back_equal(tmp_path: Path) -> None:
    manifest, files = scenes(), contents(scenes())
    find = write(tmp_path, files)
    read = Manifest.read(files["manifest.json"], find)
    assert read.fingerprint == manifest.fingerprint
    assert Manifest.damaged_files(files["manifest.json"], find) == []
    assert read.items["text"].equals(manifest.items["text"])
    assert read.pairs["image-text"].equals(manifest.pairs["image-text"])
    assert (read.media_root, read.num_classes, read.protocol) == ("somewhere", 4, "tiny")


def test_manifest_that_was_read_is_written_the_same(tmp_path: Path) -> None:
    files = contents(scenes())
    read = Manifest.read(files["manifest.json"], write(tmp_path, files))
    assert contents(read) == files
    assert contents(replace(read)) == files  # and its fingerprint made anew


def test_grown_manifest_writes_its_new_segments_alone(tmp_path: Path) -> None:
    files = contents(scenes(4, "train"))
    read = Manifest.read(files["manifest.json"], write(tmp_path, files))
    grown = read.grown(scenes(6, "train"))
    added = contents(grown, Manifest.segments_written(files["manifest.json"]))
    tables = ("items.audio", "items.image", "items.text", "pairs.image-audio", "pairs.image-text")
    assert set(added) == {"manifest.json", *(f"{name}.1.arrow" for name in tables)}
    assert added == {name: content for name, content in contents(grown).items() if name in added}
    again = Manifest.read(added["manifest.json"], write(tmp_path, added))
    assert again.items["text"].equals(scenes(6, "train").items["text"])
    assert again.segments["items.text"] == (8, 4)


@pytest.mark.parametrize("name", ["items.text.arrow", "pairs.image-audio.arrow"])
def test_altered_or_missing_table_is_named(tmp_path: Path, name: str) -> None:
    files = contents(scenes())
    find = write(tmp_path, files)
    content = bytearray(files[name])
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    assert Manifest.damaged_files(files["manifest.json"], find) == [name]
    (tmp_path / name).unlink()
    assert Manifest.damaged_files(files["manifest.json"], find) == [name]


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"tables": {}}'])
def test_damaged_description_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedRecordError):
        Manifest.read(content, lambda name, _: Path(name))


def test_rows_of_a_damaged_table_are_an_error_and_not_a_crash(tmp_path: Path) -> None:
    """An offset that points anywhere would otherwise be followed."""
    files = contents(scenes())
    find, name = write(tmp_path, files), "items.image.arrow"
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 2, 4, 6, 8))  # of the ids
    assert files[name].count(offsets) == 1
    content = files[name].replace(offsets, offsets[:8] + b"\x04\x00\x00\x70" + offsets[12:])
    (tmp_path / name).write_bytes(content)
    damaged = Manifest.read(files["manifest.json"], find)
    assert damaged.rows_fingerprint("text", range(4)) == scenes().rows_fingerprint("text", range(4))
    with pytest.raises(pa.ArrowException):
        damaged.rows_fingerprint("image", range(4))


def test_no_flipped_bit_of_a_table_is_more_than_an_error(tmp_path: Path) -> None:
    """Where it is not noticed when the table is opened, its rows have another fingerprint, or can't be hashed."""
    files, name = contents(scenes()), "items.text.arrow"
    find, whole = write(tmp_path, files), scenes()
    for place in range(len(files[name])):
        damaged = bytearray(files[name])
        damaged[place] ^= 1 << place % 8
        (tmp_path / name).unlink()  # the old one is mapped
        (tmp_path / name).write_bytes(damaged)
        try:
            read = Manifest.read(files["manifest.json"], find)
        except (OSError, ValueError, pa.ArrowException):
            continue
        try:
            found = read.rows_fingerprint("text", range(8))
        except pa.ArrowException:
            continue
        is_equal = read.items["text"].equals(whole.items["text"])
        assert (found == whole.rows_fingerprint("text", range(8))) == is_equal


def test_fingerprint_depends_on_content_and_not_on_the_place() -> None:
    manifest = scenes()
    assert replace(manifest, media_root="elsewhere").fingerprint == manifest.fingerprint
    assert scenes(split_of_last="val").fingerprint != manifest.fingerprint
    assert replace(manifest, pairs={}).fingerprint != manifest.fingerprint
    assert replace(manifest, dataset="other").fingerprint != manifest.fingerprint


def test_manifest_may_be_described_otherwise_without_being_hashed_again() -> None:
    manifest = scenes()
    moved = manifest.described_as(replace(manifest, media_root="elsewhere", num_classes=9, protocol="other"))
    assert (moved.media_root, moved.num_classes, moved.protocol) == ("elsewhere", 9, "other")
    assert moved.__dict__["fingerprint"] == replace(moved).fingerprint == manifest.fingerprint


def test_rows_of_a_grown_manifest_keep_their_fingerprint() -> None:
    assert scenes(4).rows_fingerprint("image", range(2)) == scenes(9).rows_fingerprint("image", range(2))
    assert scenes(4).rows_fingerprint("image", range(1, 3)) != scenes(4).rows_fingerprint("image", range(2))


def test_rows_are_chosen_by_split_and_language() -> None:
    manifest = scenes()
    assert manifest.rows("image", "train").tolist() == [0, 1, 2]
    assert manifest.rows("text", "test").tolist() == [6, 7]
    assert manifest.rows("text", "train", ["de"]).tolist() == [1, 3, 5]
    assert manifest.rows("image", "test", ["de"]).tolist() == [3]
    assert manifest.splits("image") == {"train": 3, "test": 1}
    assert manifest.languages() == {"en": 4, "de": 4}


def test_positives_are_found_either_way_and_through_the_image() -> None:
    manifest = scenes(2)
    assert manifest.positives("image", "text").tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]]
    assert manifest.positives("text", "image").tolist() == [[0, 0], [1, 0], [2, 1], [3, 1]]
    assert manifest.positives("text", "audio").tolist() == [[0, 0], [1, 0], [2, 1], [3, 1]]
    assert manifest.positives("audio", "text").tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]]
    assert replace(manifest, pairs={}).positives("image", "text").shape == (0, 2)


def test_selected_splits_keep_their_pairs_and_can_be_written(tmp_path: Path) -> None:
    files = contents(scenes())
    selected = Manifest.read(files["manifest.json"], write(tmp_path, files)).select(["test"])
    assert [selected.num_rows(name) for name in ("image", "text", "audio")] == [1, 2, 1]
    assert selected.positives("image", "text").tolist() == [[0, 0], [0, 1]]
    assert selected.ids("text").tolist() == ["i3#en", "i3#de"]
    assert selected.column("image", "label") == [3]
    again = contents(selected)
    assert (
        Manifest.read(again["manifest.json"], write(tmp_path, again)).items["text"].equals(selected.items["text"])
    )


def test_what_no_dataset_may_be_is_refused() -> None:
    manifest = scenes()
    with pytest.raises(DataError, match="manifest is empty"):
        replace(manifest, items={}, pairs={}).check()
    twice = items_table({"id": ["a", "a"], "split": ["train"] * 2})
    with pytest.raises(DataError, match="'a'"):
        replace(manifest, items={"image": twice}, pairs={}).check()
    for pair in ((99, 0), (0, 99), (-1, 0)):
        with pytest.raises(DataError, match="rows that don't exist"):
            replace(manifest, pairs=dict([pairs_table("image", "text", [(0, 0), pair])])).check()
    nothing = pa.table({name: [None] for name in ITEMS.names}, schema=ITEMS)
    with pytest.raises(DataError, match="image items without"):
        replace(manifest, items={"image": nothing}, pairs={}).check()
    with pytest.raises(DataError, match="image items have columns"):
        replace(manifest, items={"image": pa.table({"id": ["a"]})}, pairs={}).check()


@pytest.mark.parametrize("file", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/.."])
def test_files_outside_the_data_root_are_refused(file: str) -> None:
    table = items_table({"id": ["a", "b"], "split": ["train"] * 2, "file": ["a..b/c...jpg", file]})
    with pytest.raises(DataError, match=f"outside the data root, such as '{file}'"):
        replace(scenes(), items={"image": table}, pairs={}).check()


def test_label_beyond_the_classes_is_refused() -> None:
    scenes().check()
    with pytest.raises(DataError, match="image items have the label 3, where there are 3 classes"):
        replace(scenes(), num_classes=3).check()


def test_unknown_split_is_refused() -> None:
    table = items_table({"id": ["a", "b"], "split": ["train", "dev"]})
    with pytest.raises(DataError, match="image items are of split 'dev'; splits are train, val, test"):
        replace(scenes(), items={"image": table}, pairs={}).check()
