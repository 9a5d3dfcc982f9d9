from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from contract import parts
from contract.errors import DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.sources.hdf5 import Hdf5

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
BYTES = h5py.vlen_dtype(np.uint8)


def written(path: Path, datasets: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path.parent


def encoded(num_images: int) -> list[bytes]:
    contents = []
    for n in range(num_images):
        content = io.BytesIO()
        Image.new("RGB", (8, 8 + n)).save(content, "PNG")
        contents.append(content.getvalue())
    return contents


def write_encoded(path: Path, contents: list[bytes]) -> None:
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", len(contents), BYTES)
        for row, content in enumerate(contents):
            images[row] = np.frombuffer(content, np.uint8)


def read(root: Path, manifest: Manifest) -> list[Any]:
    places = zip(manifest.column("image", "file"), manifest.column("image", "part"), strict=True)
    return [parts.read(root / file, part) for file, part in places]


def test_files_named_like_splits_are_found(tmp_path: Path) -> None:
    written(tmp_path / "train.h5", {"images": PIXELS})
    written(tmp_path / "validation.hdf5", {"images": PIXELS[:2]})
    manifest = build(Hdf5(), "tiny", tmp_path)
    assert manifest.splits("image") == {"train": 5, "val": 2}
    assert manifest.ids("image").tolist()[-1] == "validation.hdf5/images/1"
    assert manifest.column("image", "size_bytes") == [4 * 6 * 3] * 7
    np.testing.assert_array_equal(read(tmp_path, manifest), np.concatenate([PIXELS, PIXELS[:2]]))


@pytest.mark.parametrize(
    ("images", "pixels"),
    [
        (PIXELS[..., 0], PIXELS[..., 0]),
        (PIXELS[..., :1], PIXELS[..., 0]),
        (PIXELS.transpose(0, 3, 1, 2), PIXELS),
    ],
)
def test_other_orders_and_grey_images_are_read(tmp_path: Path, images: Any, pixels: Any) -> None:
    root = written(tmp_path / "train.h5", {"images": images})
    np.testing.assert_array_equal(read(root, build(Hdf5(), "tiny", root)), pixels)


def test_encoded_images_are_rows_of_bytes(tmp_path: Path) -> None:
    contents = encoded(70)
    write_encoded(tmp_path / "train.h5", contents)
    manifest = build(Hdf5(), "tiny", tmp_path)
    assert manifest.column("image", "size_bytes") == [len(content) for content in contents]
    assert read(tmp_path, manifest) == contents


def test_captions_and_labels_stand_beside_the_images(tmp_path: Path) -> None:
    captions = np.array([["Größe", "b"], ["c", ""], ["", ""], ["d", "e"], ["f", " "]], dtype=object)
    datasets = {"images": PIXELS, "labels": np.array([0, 1, 2, 1, -1], np.int8), "captions": captions}
    root = written(tmp_path / "train.h5", datasets)
    manifest = build(Hdf5(captions="captions", labels="labels", language="de"), "tiny", root)
    assert manifest.column("text", "text") == ["Größe", "b", "c", "d", "e", "f"]
    assert manifest.positives("image", "text").tolist() == [[0, 0], [0, 1], [1, 2], [3, 3], [3, 4], [4, 5]]
    assert manifest.languages() == {"de": 6}
    assert (manifest.column("image", "label"), manifest.num_classes) == ([0, 1, 2, 1, -1], 3)
    assert build(Hdf5(labels="labels", num_classes=9), "tiny", root).num_classes == 9


def test_one_file_may_hold_several_splits(tmp_path: Path) -> None:
    datasets = {
        "train/x": PIXELS,
        "train/y": np.arange(5)[:, None],
        "test/x": PIXELS[:1],
        "test/y": np.ones((1, 1), int),
    }
    root = written(tmp_path / "all.h5", datasets)
    source = Hdf5(files={"train": ("all.h5",), "test": ("*.h5",)}, images="{split}/x", labels="{split}/y")
    manifest = build(source, "tiny", root)
    assert manifest.ids("image").tolist() == [*(f"all.h5/train/x/{n}" for n in range(5)), "all.h5/test/x/0"]
    assert manifest.column("image", "label") == [0, 1, 2, 3, 4, 1]
    np.testing.assert_array_equal(read(root, manifest)[5], PIXELS[0])


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            {"pictures": PIXELS, "g/more": PIXELS},
            "there is no dataset `images` of rows; there are: g/more, pictures",
        ),
        ({"images": PIXELS.astype(np.float32)}, r"/images is float32 \[5, 4, 6, 3\], where images are uint8"),
        ({"images": PIXELS.reshape(5, -1)}, r"/images is uint8 \[5, 72\], where images are uint8"),
        ({"images": PIXELS, "labels": np.arange(4)}, "labels has 4 rows, images has 5"),
        ({"images": PIXELS, "labels": np.arange(5.0)}, r"/labels is float64 \[5\], where labels are integers"),
        ({"images": PIXELS, "labels": np.arange(5), "captions": np.arange(5)}, "where captions are texts"),
        ({"images": PIXELS, "labels": np.arange(5), "captions": [b"\xff"] * 5}, "has a text that is not UTF-8"),
        ({"images": PIXELS, "labels": np.arange(5) - 3}, "-3 is none of the"),
    ],
)
def test_data_sets_that_are_not_as_they_should_be_are_named(
    tmp_path: Path, datasets: Mapping[str, Any], message: str
) -> None:
    root = written(tmp_path / "train.h5", datasets)
    source = Hdf5(**{name: name for name in ("labels", "captions") if name in datasets})
    with pytest.raises(DataError, match=rf"train.h5: .*{message}"):
        build(source, "tiny", root)


@pytest.mark.parametrize("num_bytes", [0, 100, 1500])
def test_truncated_file_is_named(tmp_path: Path, num_bytes: int) -> None:
    path = written(tmp_path / "train.h5", {"images": PIXELS}) / "train.h5"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(DataError, match=r"train.h5: is no HDF5 that can be read"):
        build(Hdf5(), "tiny", tmp_path)


def test_damaged_chunk_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["images"] = PIXELS
        file.create_dataset("labels", data=np.arange(5), chunks=(5,), compression="gzip", fletcher32=True)
        where = file["labels"].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "train.h5").read_bytes())
    content[where + 4] ^= 255
    (tmp_path / "train.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"train.h5: is no HDF5 that can be read"):
        build(Hdf5(labels="labels"), "tiny", tmp_path)


def test_data_sets_of_other_files_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere/other.h5", {"images": PIXELS})
    (tmp_path / "root").mkdir()
    with h5py.File(tmp_path / "root/train.h5", "w") as file:
        file["images"] = h5py.ExternalLink("../elsewhere/other.h5", "images")
    with pytest.raises(DataError, match="images lies in another file"):
        build(Hdf5(), "tiny", tmp_path / "root")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny is not on disk: looked for .*train.h5"):
        build(Hdf5(), "tiny", tmp_path)
    with pytest.raises(DataError, match=r"files.train: there is no .*x-\*.h5"):
        build(Hdf5(files={"train": ("x-*.h5",)}), "tiny", tmp_path)
    with pytest.raises(DataError, match="points out of the data root"):
        build(Hdf5(files={"train": ("../x.h5",)}), "tiny", tmp_path)


def test_any_flipped_byte_gives_a_manifest_or_a_data_error(tmp_path: Path) -> None:
    written(tmp_path / "train.h5", {"images": PIXELS, "g/labels": np.arange(5)})
    content = (tmp_path / "train.h5").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.integers(0, len(content))] = generator.integers(0, 256)
        (tmp_path / "train.h5").write_bytes(damaged)
        try:
            build(Hdf5(labels="g/labels"), "tiny", tmp_path)
        except DataError:
            continue


def test_rows_that_were_never_written_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file.create_dataset("images", (1 << 40, 8, 8, 3), np.uint8, chunks=(1, 8, 8, 3))
    with pytest.raises(DataError, match="images should have 1,099,511,627,776 rows, and there are 0 bytes of it"):
        build(Hdf5(), "tiny", tmp_path)
