from pathlib import Path

import h5py
import numpy as np
import pytest

from contract import parts
from contract.views import UndecodableError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
ENCODED = [bytes([number]) * (number + 1) + b"\0" for number in range(5)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as out:
        out["images"] = IMAGES
        out.create_dataset("train/first", data=np.moveaxis(IMAGES, 3, 1), chunks=(2, 3, 6, 7), compression="gzip")
        out["grey"] = IMAGES[..., 0]
        encoded = out.create_dataset("encoded", 5, h5py.vlen_dtype(np.uint8))
        for row, content in enumerate(ENCODED):
            encoded[row] = np.frombuffer(content, np.uint8)
        out["opaque"] = np.array([np.void(b"\xff\xd8\0")])
        out["number"] = 3
        out["floats"] = IMAGES / 255
        out["flat"] = IMAGES.reshape(5, -1)
        out.create_dataset("huge", (1, 1 << 20, 1 << 20, 3), np.uint8, chunks=(1, 16, 16, 3))
        out.create_dataset("huge_chunk", (1 << 31, 1), np.uint8, chunks=((1 << 31), 1))
    return path


def test_pixels_are_those_of_the_row(file: Path) -> None:
    for row in range(5):
        np.testing.assert_array_equal(parts.read(file, f"hdf5:images[{row}]"), IMAGES[row])
        np.testing.assert_array_equal(parts.read(file, f"hdf5:train/first[{row}]"), IMAGES[row])
        np.testing.assert_array_equal(parts.read(file, f"hdf5:grey[{row}]"), IMAGES[row, :, :, 0])


def test_rows_of_a_length_of_their_own_are_encoded(file: Path) -> None:
    assert [parts.read(file, f"hdf5:encoded[{row}]") for row in range(5)] == ENCODED
    assert parts.read(file, "hdf5:opaque[0]") == b"\xff\xd8\0"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("hdf5:nothing[0]", r"^a\.h5 has no data set 'nothing'$"),
        ("hdf5:train[0]", r"^a\.h5 has no data set 'train'$"),
        ("hdf5:images[5]", "^row 5 of data set 'images', which has 5$"),
        ("hdf5:number[0]", "has no rows"),
        ("hdf5:floats[0]", r"^float64 \[6, 7, 3\]: pixels are uint8"),
        ("hdf5:flat[0]", r"^uint8 \[126\]: pixels are uint8"),
        ("hdf5:huge[0]", "more than an item may have"),
        ("hdf5:huge_chunk[0]", "a chunk of .* more than an item may have"),
    ],
)
def test_what_is_no_image_says_why(file: Path, part: str, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        parts.read(file, part)


def test_data_set_of_another_file_is_refused(tmp_path: Path, file: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(300))
    layout = h5py.VirtualLayout((5, 6, 7, 3), np.uint8)
    layout[:] = h5py.VirtualSource(file, "images", (5, 6, 7, 3))
    with h5py.File(tmp_path / "links.h5", "w") as out:
        out["link"] = h5py.ExternalLink("a.h5", "images")
        out["folder"] = h5py.ExternalLink("a.h5", "/")
        out.create_dataset("raw", (4, 5, 5), np.uint8, external=[(tmp_path / "raw", 0, 100)])
        out.create_virtual_dataset("virtual", layout)
        out["dangling"] = h5py.ExternalLink("nothing.h5", "images")
    for name in ("link", "folder/images", "raw", "virtual"):
        with pytest.raises(UndecodableError, match=f"data set '{name}' of links.h5 lies in another file"):
            parts.read(tmp_path / "links.h5", f"hdf5:{name}[0]")
    with pytest.raises(UndecodableError):
        parts.read(tmp_path / "links.h5", "hdf5:dangling[0]")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.95])
def test_truncated_file_says_so(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UndecodableError, match="not a readable HDF5 file, truncated or broken"):
        parts.read(file, "hdf5:images[4]")


def test_damaged_chunk_is_a_reason_and_no_crash(file: Path) -> None:
    with h5py.File(file) as opened:
        chunk = opened["train/first"].id.get_chunk_info(0)
    content = bytearray(file.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(UndecodableError, match="not a readable HDF5 file"):
        parts.read(file, "hdf5:train/first[0]")
    np.testing.assert_array_equal(parts.read(file, "hdf5:train/first[4]"), IMAGES[4])
