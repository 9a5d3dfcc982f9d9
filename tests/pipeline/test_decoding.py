"""What the encoder is shown of a row, and which rows it is not shown."""

from __future__ import annotations

import os
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.manifest import Manifest, items_table
from contract.views import ImageView, TextView
from pipeline.decoding import Decoder
from pipeline.settings import Views

VIEW = ImageView(height=8, width=8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with one photograph."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/good.png")
    return tmp_path / "data"


def write(file: Path, grey: int = 128) -> None:
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(file)


def manifest(root: Path, files: list[str], parts: list[str] | None = None) -> Manifest:
    ids = [str(number) for number in range(len(files))]
    columns = {"id": ids, "file": files, "part": parts or [""] * len(files), "split": ["train"] * len(files)}
    return Manifest(dataset="d", protocol="p", items={"image": items_table(columns)}, media_root=str(root))


def decoder(root: Path, files: list[str], parts: list[str] | None = None, num_threads: int = 2) -> Decoder:
    return Decoder(manifest(root, files, parts), "image", VIEW, Views(), num_threads)


def reason(root: Path, file: str) -> str:
    """Why the only row is quarantined."""
    (entry,) = decoder(root, [file]).submit(range(1), 0).result().quarantined
    assert (entry.row, entry.id, entry.file) == (0, "0", file)
    return entry.reason


def test_views_come_in_the_order_of_the_rows(root: Path) -> None:
    greys = list(range(0, 240, 8))
    for grey in greys:
        write(root / f"{grey}.png", grey)
    decoding = decoder(root, [f"{grey}.png" for grey in greys], num_threads=4)
    decoded = decoding.submit(range(10, 30), 0).result()
    assert [int(view[0, 0, 0]) for view in decoded.views] == greys[10:]
    decoded = decoding.submit(np.array([7, 3, 20]), 0).result()
    assert [int(view[0, 0, 0]) for view in decoded.views] == [56, 24, 160]
    assert (decoded.num_rows, decoded.good, decoded.quarantined) == (3, [0, 1, 2], [])


def test_what_can_not_be_decoded_is_named_by_file_and_part(root: Path) -> None:
    (root / "images").mkdir()
    (root / "images/broken.png").write_bytes(b"no image")
    files, parts = ["images/broken.png", "good.png", "good.png", "good.png"], ["", "", "bytes:0+20", "npz:x[1]"]
    decoded = decoder(root, files, parts).submit(range(4), 0).result()
    assert decoded.good == [1]
    assert [(entry.row, entry.id, entry.file) for entry in decoded.quarantined] == [
        (0, "0", "images/broken.png"),
        (2, "2", "good.png bytes:0+20"),
        (3, "3", "good.png npz:x[1]"),
    ]
    assert all(str(root) not in entry.reason for entry in decoded.quarantined)


def test_parts_are_decoded(root: Path) -> None:
    image = (root / "good.png").read_bytes()
    (root / "images.tar").write_bytes(b"x" * 512 + image)
    decoded = decoder(root, ["images.tar"], [f"bytes:512+{len(image)}"]).submit(range(1), 0).result()
    np.testing.assert_array_equal(decoded.views[0], np.full((8, 8, 3), 128))


def test_files_outside_of_the_data_root_are_not_shown(root: Path) -> None:
    write(root.parent / "outside.png")
    (root / "link.png").symlink_to("../outside.png")
    (root / "folder").symlink_to("..")
    assert reason(root, "link.png") == "link.png leads out of the data root, through a link"
    assert reason(root, "folder/outside.png") == "folder/outside.png leads out of the data root, through a link"
    assert reason(root, "../outside.png") == "../outside.png leads out of the data root"
    (root / "inside.png").symlink_to("good.png")
    assert decoder(root, ["inside.png"]).submit(range(1), 0).result().good == [0]


@pytest.mark.timeout(30)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    assert reason(root, "pipe.png") == "not a regular file"


def test_folders_and_missing_files_have_a_reason(root: Path) -> None:
    (root / "folder.png").mkdir()
    assert reason(root, "folder.png") == "not a regular file"
    assert reason(root, "gone.png") == "the file is missing"


def test_a_batch_of_which_nothing_can_be_decoded_is_empty(root: Path) -> None:
    decoded = decoder(root, ["gone.png", "gone too.png"]).submit(range(2), 2).result()
    assert (decoded.num_rows, decoded.good, decoded.views) == (2, [], [])
    assert len(decoded.quarantined) == 2


def test_augmented_views_follow_each_rows_evaluation_view(root: Path) -> None:
    write(root / "dark.png", 0)
    decoding = Decoder(manifest(root, ["good.png", "dark.png"]), "image", VIEW, Views(num=2), 2)
    decoded = decoding.submit(range(2), 2).result()
    assert len(decoded.views) == 6
    assert decoded.parameters.shape == (6, 8)
    assert not decoded.parameters[[0, 3]].any()
    assert decoded.parameters[[1, 2, 4, 5]].any(axis=1).all()
    np.testing.assert_array_equal(decoded.views[0], np.full((8, 8, 3), 128))
    assert not np.any(decoded.views[3:])


def test_captions_need_no_file() -> None:
    items = {"text": items_table({"id": ["a", "b"], "text": ["one", "two"], "split": ["train"] * 2})}
    decoding = Decoder(Manifest(dataset="d", protocol="p", items=items), "text", TextView(), Views(), 1)
    assert decoding.submit(range(2), 0).result().views == ["one", "two"]


def test_reading_and_decoding_are_timed_apart(root: Path) -> None:
    decoded = decoder(root, ["good.png"] * 4).submit(range(4), 0).result()
    assert decoded.reading_s > 0
    assert decoded.decoding_s > 0


def test_small_batches_are_decoded_further_ahead_so_that_every_thread_has_one(root: Path) -> None:
    decoding = decoder(root, ["good.png"], num_threads=8)
    assert [decoding.num_ahead(size) for size in (1, 4, 64)] == [16, 4, 3]


def test_a_batch_that_is_cancelled_is_not_decoded(root: Path) -> None:
    decoding = decoder(root, ["good.png"] * 2000, num_threads=1)
    pending = decoding.submit(range(2000), 0)
    pending.cancel()
    with pytest.raises(CancelledError):
        pending.result()
