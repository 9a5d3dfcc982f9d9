import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.datasets.folder import default_loader

from contract.views import ImageView, Item, UndecodableError
from contract.views.image_file import FORMATS, MAX_PIXELS, decode

SMOOTH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((48, 40))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
ORIENTATION = 0x0112


def decoded(path: Path) -> np.ndarray:
    return np.asarray(decode(Item(id="a", file=path)))


def refused(path: Path, part: str = "") -> str:
    with pytest.raises(UndecodableError) as caught:
        decode(Item(id="a", file=path, part=part))
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    assert "0x" not in str(caught.value)
    return str(caught.value)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: int, rows: bytes, *, order: str = "<") -> bytes:
    """Uncompressed greyscale."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(rows)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(rows))
    return start + rows + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def in_mode(mode: str) -> Image.Image:
    if mode == "P with a transparent colour":
        image = SMOOTH.convert("P", palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = 3
        return image
    if mode == "P with transparencies":
        image = SMOOTH.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
        image.info["transparency"] = bytes(range(0, 160, 10))
        return image
    if mode in ("LA", "RGBA", "PA"):
        image = SMOOTH.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(SMOOTH.size))
        return image.convert(mode)
    return SMOOTH.convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *((mode, "a.png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "a.png") for mode in ("P with a transparent colour", "P with transparencies")),
        *((mode, "a.tif") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")),
        *((mode, "a.jpg") for mode in ("L", "RGB", "CMYK")),
        *((mode, "a.webp") for mode in ("L", "RGB", "RGBA")),
        *((mode, "a.gif") for mode in ("L", "P", "RGB", "P with a transparent colour")),
        *((mode, "a.bmp") for mode in ("1", "L", "P", "RGB")),
        *((mode, name) for mode in ("RGB",) for name in ("a.ppm", "a.jp2", "a.avif")),
    ],
)
def test_every_colour_mode_is_what_torchvisions_loader_gives(tmp_path: Path, mode: str, name: str) -> None:
    in_mode(mode).save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.asarray(default_loader(str(tmp_path / name)))
    np.testing.assert_array_equal(decoded(tmp_path / name), theirs)


def test_inverted_cmyk_of_adobe_is_not_a_negative(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 30, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_allclose(decoded(tmp_path / "a.jpg")[16, 16], (200, 30, 60), atol=8)


def test_transparency_is_dropped_and_not_laid_over_a_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 200, 30, 0)).save(tmp_path / "a.png")
    assert (decoded(tmp_path / "a.png") == (10, 200, 30)).all()


GREY16 = (np.arange(12 * 16, dtype=np.uint16) * 341).reshape(12, 16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big_endian.tif", "a.pgm", "a.jp2"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    if name == "big_endian.tif":
        (tmp_path / name).write_bytes(tiff(16, 12, 16, GREY16.astype(">u2").tobytes(), order=">"))
    else:
        Image.fromarray(GREY16).save(tmp_path / name)
    grey = np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decoded(tmp_path / name), grey)
    assert grey.max() < 255 < GREY16.max()


def test_colours_of_16_bits_are_scaled_as_grey_is(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in GREY16)
    (tmp_path / "a.png").write_bytes(png(16, 12, 16, 2, rows))
    np.testing.assert_array_equal(decoded(tmp_path / "a.png")[..., 1], GREY16 >> 8)


def test_tiff_of_12_bits_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    values = np.arange(12 * 16).reshape(12, 16) * 21
    rows = b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in values.reshape(-1, 2))
    (tmp_path / "a.tif").write_bytes(tiff(16, 12, 12, rows))
    np.testing.assert_array_equal(decoded(tmp_path / "a.tif")[..., 0], values >> 4)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_an_agreed_range_are_quarantined(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(GREY16.astype(dtype)).save(tmp_path / "a.tif")
    assert "have no agreed range: save the image with 8 or 16 bits" in refused(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_animation_is_its_first_frame(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as file:
        assert file.n_frames == 3
    assert (decoded(tmp_path / name) == (255, 0, 0)).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    SMOOTH.save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as file:
        theirs = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    np.testing.assert_array_equal(decoded(tmp_path / name), theirs)
    assert decoded(tmp_path / name).shape == ((40, 48, 3) if orientation < 5 else (48, 40, 3))


def test_grey_image_of_16_bits_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(GREY16).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png")[..., 0], np.rot90(GREY16 >> 8, -1))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0no TIFF at all",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0",  # five entries, none of which is there
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # turned by 99
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ],
)
def test_damaged_exif_costs_neither_the_image_nor_a_warning(tmp_path: Path, exif: bytes) -> None:
    SMOOTH.save(tmp_path / "plain.png")
    SMOOTH.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png"), decoded(tmp_path / "plain.png"))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {}),
        ("a.jpg", {"progressive": True}),
        *((f"a.{suffix}", {}) for suffix in ("png", "webp", "gif", "bmp", "tif", "ppm", "jp2", "avif")),
        ("a.tif", {"compression": "tiff_lzw"}),
    ],
)
def test_truncated_image_is_quarantined_as_such(
    tmp_path: Path, name: str, options: dict[str, object], kept: float
) -> None:
    NOISE.save(tmp_path / name, **options)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refused(tmp_path / name)


@pytest.mark.parametrize("sides", [(65_000, 65_000), (13_378, 13_378), (2**31 - 1, 1)])
def test_bomb_is_refused_by_its_header_with_its_size(tmp_path: Path, sides: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png(*sides, 8, 2, bytes(1000)))
    assert str(sides[0] * sides[1]) in (reason := refused(tmp_path / "a.png"))
    assert "exceeds limit" in reason


def test_bound_holds_where_pillows_was_lifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png(65_000, 65_000, 8, 2, bytes(1000)))
    assert refused(tmp_path / "a.png") == f"65000 x 65000 pixels: an image has 1 to {MAX_PIXELS:,}"


def test_large_photograph_that_pillow_only_warns_of_is_decoded(tmp_path: Path) -> None:
    # Cut off, so that what is tested takes no memory: the size alone was no reason.
    (tmp_path / "a.png").write_bytes(png(12_000, 9_000, 8, 2, bytes(1000)))
    assert "truncated" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("content", [png(0, 5, 8, 2, b""), png(5, 0, 8, 2, b""), b"P6 0 4 255\n", b"P6 -3 4 255\n"])
def test_image_without_pixels_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a")


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_shape_that_is_huge_once_resized_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    item = Item(id="a", file=tmp_path / "a.png")
    with pytest.raises(UndecodableError, match=rf"^{size[0]} x {size[1]} pixels are too long a shape: "):
        ImageView(height=224, width=224).load(item)
    squashed = ImageView(height=224, width=224, crop_mode="squash").load(item)
    assert (squashed == (255, 0, 0)).all()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\xff\xd8", b"\xff\xd8\xff\xe0" + bytes(99), b"\x89PNG\r\n\x1a\n", b"GIF89a",
     b"BM" + bytes(60), b"II*\0" + bytes(8), b"RIFF\x10\0\0\0WEBPVP8 ", b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n",
     b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF\x24\0\0\0WAVEfmt ", bytes(1000)],
)  # fmt: skip
def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert refused(tmp_path / "a.jpg").startswith("not a readable image")
    # From memory, where Pillow would give an address that is another in every run.
    reason = refused(tmp_path / "a.jpg", f"bytes:0+{len(content)}")
    assert reason.startswith("not a readable image")


def test_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert refused(tmp_path / "folder").startswith("not a readable image")


def test_no_format_is_opened_that_runs_another_program() -> None:
    assert not {"EPS", "WMF", "PDF"} & set(FORMATS)


def test_member_of_a_container_is_decoded_as_a_file_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    SMOOTH.save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    content = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(content)
    (tmp_path / "a.tar").write_bytes(bytes(512) + content + bytes(512))
    image = decode(Item(id="a", file=tmp_path / "a.tar", part=f"bytes:512+{len(content)}"))
    np.testing.assert_array_equal(image, decoded(tmp_path / "a.jpg"))
    assert image.size == (40, 48)


def test_pixels_of_an_array_are_the_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", colour=np.asarray(SMOOTH)[None], grey=GREY16[None].astype(np.uint8))
    image = decode(Item(id="a", file=tmp_path / "a.npz", part="npz:colour[0]"))
    np.testing.assert_array_equal(image, SMOOTH)
    image = decode(Item(id="a", file=tmp_path / "a.npz", part="npz:grey[0]"))
    np.testing.assert_array_equal(image, Image.fromarray(GREY16.astype(np.uint8)).convert("RGB"))
    assert refused(tmp_path / "a.npz", "npz:colour[1]") == "row 1 of array 'colour', which has 1"


def test_threads_decode_without_a_word_on_stderr(tmp_path: Path) -> None:
    in_mode("P with transparencies").save(tmp_path / "palette.png")
    SMOOTH.save(tmp_path / "exif.png", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    NOISE.save(tmp_path / "cut.tif", compression="tiff_lzw")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:-100])
    (tmp_path / "large.png").write_bytes(png(12_000, 9_000, 8, 2, bytes(1000)))
    code = f"""
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from contract.views import ImageView, Item, UndecodableError
def load(path):
    try:
        ImageView(height=8, width=8).load(Item(id="a", file=path))
    except UndecodableError:
        pass
with ThreadPoolExecutor(4) as threads:
    list(threads.map(load, sorted(Path({str(tmp_path)!r}).iterdir()) * 5))
"""
    command = [sys.executable, "-W", "always", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_threads_decode_the_same_pixels(tmp_path: Path) -> None:
    for number in range(8):
        NOISE.rotate(number).save(tmp_path / f"{number}.jpg")
    files = sorted(tmp_path.iterdir()) * 4
    with ThreadPoolExecutor(4) as threads:
        for file, found in zip(files, threads.map(decoded, files), strict=True):
            np.testing.assert_array_equal(found, Image.open(file))
