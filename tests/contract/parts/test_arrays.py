import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from contract import parts
from contract.parts import arrays
from contract.views import UndecodableError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_row_of_an_npz_is_that_of_the_array(tmp_path: Path, save: object) -> None:
    save(tmp_path / "a.npz", images=IMAGES, grey=IMAGES[..., 0], labels=np.arange(5))
    assert arrays.names(tmp_path / "a.npz") == ["images", "grey", "labels"]
    for row in range(5):
        np.testing.assert_array_equal(parts.read(tmp_path / "a.npz", f"npz:images[{row}]"), IMAGES[row])
        np.testing.assert_array_equal(parts.read(tmp_path / "a.npz", f"npz:grey[{row}]"), IMAGES[row, :, :, 0])
    np.testing.assert_array_equal(arrays.load(tmp_path / "a.npz", "labels"), np.arange(5))


def test_uncompressed_array_is_mapped_and_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES)
    np.save(tmp_path / "a.npy", IMAGES)
    for file, name in (("a.npz", "images"), ("a.npy", "array")):
        assert isinstance(arrays.load(tmp_path / file, name), np.memmap)
    row = parts.read(tmp_path / "a.npy", "npz:array[1]")
    assert type(row) is np.ndarray
    np.testing.assert_array_equal(row, IMAGES[1])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_either_order_and_channels_of_either_side_are_the_same_image(
    tmp_path: Path, save: object, order: str
) -> None:
    save(
        tmp_path / "a.npz",
        last=np.asarray(IMAGES, order=order),
        first=np.asarray(np.moveaxis(IMAGES, 3, 1), order=order),
        one=np.asarray(IMAGES[:, None, :, :, 0], order=order),
    )
    for name in ("last", "first"):
        np.testing.assert_array_equal(parts.read(tmp_path / "a.npz", f"npz:{name}[4]"), IMAGES[4])
    np.testing.assert_array_equal(parts.read(tmp_path / "a.npz", "npz:one[4]"), IMAGES[4, :, :, 0])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"float32 \[4, 4, 3\]: pixels are uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]: pixels are uint8"),
        (np.zeros((2, 3072), np.uint8), r"uint8 \[3072\]: pixels are uint8"),
        (np.zeros((2, 0, 4), np.uint8), r"uint8 \[0, 4\]: pixels are uint8"),
        (np.uint8(3), "is a number and has no rows"),
        (np.zeros((1, 4, 4), np.uint8), "row 1 of array 'a', which has 1"),
        (np.array([{}, {}], object), "Python objects"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_row_that_is_no_image_says_what_it_is(tmp_path: Path, save: object, array: np.ndarray, reason: str) -> None:
    save(tmp_path / "a.npz", a=array)
    with pytest.raises(UndecodableError, match=reason):
        parts.read(tmp_path / "a.npz", "npz:a[1]")


def test_array_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.arange(5))
    with pytest.raises(UndecodableError, match=r"^a\.npz has no array 'image'; it has images, labels$"):
        parts.read(tmp_path / "a.npz", "npz:image[0]")


@pytest.mark.parametrize("name", ["a.npz", "b.npz", "c.npy"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_array_file_says_so(tmp_path: Path, name: str, kept: float) -> None:
    np.savez(tmp_path / "a.npz", array=IMAGES)
    np.savez_compressed(tmp_path / "b.npz", array=IMAGES)
    np.save(tmp_path / "c.npy", IMAGES)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UndecodableError, match="not a readable array file, truncated or broken"):
        parts.read(tmp_path / name, "npz:array[4]")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_header_that_lies_about_the_shape_allocates_nothing(tmp_path: Path, compression: int) -> None:
    member = io.BytesIO()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (9, 99999999, 99999), }\n"
    member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(99))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("a.npy", member.getvalue())
    with pytest.raises(UndecodableError, match="array 'a' ends before its last row"):
        parts.read(tmp_path / "a.npz", "npz:a[0]")


def test_compressed_array_that_is_too_large_to_hold_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MAX_COMPRESSED_BYTES", 100)
    np.savez_compressed(tmp_path / "a.npz", a=IMAGES)
    with pytest.raises(UndecodableError, match=r"save it with numpy\.savez"):
        parts.read(tmp_path / "a.npz", "npz:a[0]")
