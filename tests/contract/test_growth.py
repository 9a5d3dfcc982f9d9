from dataclasses import replace

import pytest

from contract.errors import DataError
from contract.manifest import Manifest, items_table, pairs_table


def grown_twice(scenes) -> Manifest:
    return scenes(2, captions=True).grown(scenes(3, captions=True)).grown(scenes(5, captions=True))


def pairs_by_id(manifest: Manifest) -> set[tuple[str, str]]:
    images, texts = manifest.ids("image"), manifest.ids("text")
    return {(images[i], texts[t]) for i, t in manifest.positives("image", "text")}


def test_what_is_appended_at_the_end_stays_where_it_is(scenes) -> None:
    grown, newer = grown_twice(scenes), scenes(5, captions=True)
    assert grown.segments == {"items.image": (2, 1, 2), "items.text": (4, 2, 4), "pairs.image-text": (4, 2, 4)}
    assert grown.fingerprint == newer.fingerprint
    assert grown.segment_starts("text") == [0, 4, 6]


def test_what_comes_interleaved_is_appended_and_its_pairs_follow(scenes) -> None:
    newer = scenes(5, captions=True, order=[4, 0, 3, 1, 2])
    grown = scenes(3, captions=True).grown(newer)
    assert grown.ids("image").tolist() == ["i0", "i1", "i2", "i4", "i3"]
    assert grown.ids("text")[:6].tolist() == scenes(3, captions=True).ids("text").tolist()
    assert pairs_by_id(grown) == pairs_by_id(newer)
    grown.check()
    assert grown.rows_fingerprint("text", range(6)) == scenes(3, captions=True).rows_fingerprint("text", range(6))
    # Growing to the same again changes nothing.
    again = grown.grown(newer)
    assert (again.fingerprint, again.segments) == (grown.fingerprint, grown.segments)


def test_another_modality_and_its_pairs_may_be_added(scenes) -> None:
    grown = scenes(3).grown(scenes(4, captions=True))
    assert grown.modalities == ("image", "text")
    assert grown.segments == {"items.image": (3, 1), "items.text": (8,), "pairs.image-text": (8,)}
    assert grown.fingerprint == scenes(4, captions=True).fingerprint


def test_more_pairs_of_items_that_are_there_may_be_added(scenes) -> None:
    newer = scenes(3, captions=True)
    kind, fewer = pairs_table("image", "text", [(0, 1), (2, 4)])
    grown = replace(newer, pairs={kind: fewer}).grown(newer)
    assert pairs_by_id(grown) == pairs_by_id(newer)
    assert grown.positives("image", "text")[:2].tolist() == [[0, 1], [2, 4]]


def test_table_without_rows_grows_or_stays_empty(scenes) -> None:
    none = scenes(2, captions=True)
    none = replace(none, items=none.items | {"text": none.items["text"].slice(0, 0)})
    none = replace(none, pairs=dict([pairs_table("image", "text", [])]))
    more_images = replace(scenes(4, captions=True), items=none.items | {"image": scenes(4).items["image"]})
    more_images = replace(more_images, pairs=none.pairs)
    assert none.grown(more_images).segments == {
        "items.image": (2, 2),
        "items.text": (0,),
        "pairs.image-text": (0,),
    }
    grown = none.grown(scenes(4, captions=True))
    assert grown.segments == {"items.image": (2, 2), "items.text": (0, 8), "pairs.image-text": (0, 8)}
    assert grown.segment_starts("text") == [0, 0]


def test_items_that_are_gone_are_named(scenes) -> None:
    with pytest.raises(DataError, match=r"2 of 5 image items are gone, such as 'i1'"):
        scenes(5).grown(scenes(4, order=[0, 2, 4, 7]))


@pytest.mark.parametrize("column", ["file", "text", "label", "language", "split", "size_bytes"])
def test_items_that_changed_are_named_with_what_changed(scenes, column: str) -> None:
    ids = ["i0", "i9", "i1"]
    changed = 7 if column in ("label", "size_bytes") else "other"
    original = {"label": -1, "size_bytes": -1, "split": "train"}.get(column, "")
    columns = {"split": ["train"] * 3} | {column: [original, original, changed]}
    newer = Manifest(dataset="tiny", protocol="tiny", items={"image": items_table({"id": ids} | columns)})
    with pytest.raises(DataError, match=f"1 image items have another {column}, such as 'i1': {changed!r}, not "):
        scenes(2).grown(newer)


def test_pairs_that_are_gone_are_named_even_if_others_took_their_place(scenes) -> None:
    whole = scenes(2, captions=True)
    kind, other = pairs_table("image", "text", [(0, 0), (0, 1), (1, 2), (0, 3)])
    with pytest.raises(DataError, match=r"1 of 4 image-text pairs are gone, such as 'i1' and 'i1#1'"):
        whole.grown(replace(whole, pairs={kind: other}))
    kind, twice = pairs_table("image", "text", [(0, 0), (0, 1), (1, 2), (1, 2)])
    with pytest.raises(DataError, match=r"'i1' and 'i1#1'"):
        whole.grown(replace(whole, pairs={kind: twice}))


def test_modality_or_pairs_that_are_gone_are_named(scenes) -> None:
    whole = scenes(2, captions=True)
    with pytest.raises(DataError, match="no image-text pairs any more"):
        whole.grown(replace(whole, pairs={}))
    with pytest.raises(DataError, match="no image-text pairs any more"):
        whole.grown(scenes(2))
    with pytest.raises(DataError, match="no text items any more"):
        replace(whole, pairs={}).grown(scenes(2))
