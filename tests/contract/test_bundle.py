from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract import bundle
from contract.bundle import BundleError, Embedder
from contract.views import AudioView, ImageView, Item

VIEWS = [
    ImageView(height=24, width=24),
    ImageView(height=24, width=24, crop_pct=0.875, interpolation="bilinear", rounding="down"),
    ImageView(height=20, width=31, crop_pct=0.9, interpolation="lanczos"),
    ImageView(height=17, width=24, crop_pct=0.8, crop_mode="squash", interpolation="nearest"),
]


def item(path: Path) -> Item:
    return Item(id=path.name, file=path)


def picture(path: Path, size: tuple[int, int], mode: str, *, turned: bool = False) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 8  # orientation
    (image if mode == "I;16" else image.convert(mode)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("size", "mode", "suffix"),
    [
        ((40, 30), "RGB", "png"),
        ((31, 77), "RGB", "jpg"),
        ((90, 21), "L", "png"),
        ((33, 33), "P", "gif"),
        ((50, 41), "CMYK", "jpg"),
        ((26, 45), "RGBA", "png"),
        ((48, 36), "I;16", "png"),
        ((48, 36), "I;16", "tiff"),
    ],
)
def test_pictures_are_shown_as_the_store_was_filled(
    tmp_path: Path, view: ImageView, size: tuple[int, int], mode: str, suffix: str
) -> None:
    path = picture(tmp_path / f"one.{suffix}", size, mode, turned=suffix in ("jpg", "png"))
    expected = view.load(item(path))
    np.testing.assert_array_equal(bundle.view(bundle.picture(path), asdict(view)), expected)
    np.testing.assert_array_equal(bundle.view(bundle.picture(path.read_bytes()), asdict(view)), expected)


@pytest.mark.parametrize(
    ("rate_hz", "seconds", "channels", "suffix"),
    [(16000, 2.0, 1, "wav"), (16000, 0.3, 2, "flac"), (44100, 0.4, 2, "ogg"), (8000, 3.0, 1, "mp3")],
)
def test_sounds_are_heard_as_the_store_was_filled(
    tmp_path: Path, rate_hz: int, seconds: float, channels: int, suffix: str
) -> None:
    path = tmp_path / f"one.{suffix}"
    samples = np.random.default_rng(0).normal(0, 0.2, (round(rate_hz * seconds), channels)).clip(-1, 1)
    soundfile.write(path, samples, rate_hz)
    view = AudioView(sample_rate_hz=16000, duration_s=0.7)
    np.testing.assert_array_equal(bundle.samples(path, asdict(view)), view.load(item(path)))
    np.testing.assert_array_equal(bundle.samples(path.read_bytes(), asdict(view)), view.load(item(path)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: Embedder(folder / "none").width, "none: no bundle there"),
        (lambda folder: Embedder(folder).images(["a.png"]), "embeds no pictures, only text"),
        (lambda folder: Embedder(folder).texts([" \n"]), "the text is empty"),
        (
            lambda folder: Embedder(folder, int8=True).texts(["dog"]),
            "no int8 model of text; `trainer export --int8`",
        ),
        (lambda folder: bundle.picture(folder / bundle.DESCRIPTION), "not a readable picture: cannot identify"),
        (lambda folder: bundle.picture(b"none"), "4 bytes: not a readable picture"),
        (lambda folder: bundle.samples(folder / "none.wav", VIEW), "none.wav: no such file"),
        (lambda folder: bundle.samples(b"none", VIEW), "4 bytes: not a readable sound"),
        (lambda folder: bundle.picture(folder / "none.png"), "none.png: no such file"),
        (lambda folder: Embedder(folder).texts("dog"), r"give a list of texts, not one: \['dog'\]"),
        (lambda folder: Embedder(folder).texts([3]), "3: not a text"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, call, message: str) -> None:
    write(tmp_path, bundle.FORMAT)
    with pytest.raises(BundleError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_another_format_and_a_damaged_description_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 99)
    with pytest.raises(BundleError, match="has format 99, and this program reads format 1"):
        _ = Embedder(tmp_path).description
    (tmp_path / bundle.DESCRIPTION).write_text("[")
    with pytest.raises(BundleError, match="not the description of a bundle"):
        _ = Embedder(tmp_path).description


def test_it_stands_alone() -> None:
    """What `trainer export` copies into a folder imports nothing of Precept."""
    lines = Path(bundle.__file__).read_text().splitlines()
    imported = {
        line.split()[1].partition(".")[0] for line in lines if line.lstrip().startswith(("import ", "from "))
    }
    assert not imported & {"contract", "encoders", "pipeline", "trainer", "eval", "torch", "transformers", "timm"}


VIEW = {"sample_rate_hz": 16000, "duration_s": 1.0}


def write(folder: Path, version: int) -> None:
    words = {"kind": "ngrams", "width": 8, "max_length": 4, "ngrams": [3, 5], "word": r"\w+"}
    text = {"model": "text.onnx", "inputs": ["vectors", "length"], "preprocessing": words}
    tree = {"format": version, "width": 8, "modalities": {"text": text}}
    (folder / bundle.DESCRIPTION).write_text(json.dumps(tree))
