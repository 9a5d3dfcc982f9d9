from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from contract.errors import DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.datasets import load
from pipeline.sources.aligned import Aligned, AlignedSplit

IMAGES = {"train": ["1.jpg", "2.jpg"], "val": ["3.jpg"], "test_2016_flickr": ["4.jpg"]}


def multi30k(root: Path) -> Path:
    for folder in ("image_splits", "raw", "flickr30k-images"):
        (root / folder).mkdir()
    for split, names in IMAGES.items():
        (root / f"image_splits/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for language in ("en", "de", "fr"):
            (root / f"raw/{split}.{language}").write_text("".join(f"{language} {name} ü\n" for name in names))
        for name in names:
            Image.new("RGB", (8, 8)).save(root / "flickr30k-images" / name)
    return root


def built(root: Path) -> Manifest:
    return load("multi30k").build(root)


def test_lines_of_every_language_belong_to_the_image_of_their_number(tmp_path: Path) -> None:
    manifest = built(multi30k(tmp_path))
    assert manifest.ids("image").tolist() == ["1", "2", "3", "4"]
    assert manifest.column("image", "split") == ["train", "train", "val", "test"]
    assert manifest.languages() == {"en": 4, "de": 4, "fr": 4}
    assert manifest.column("text", "text", [3, 4, 5]) == ["en 2.jpg ü", "de 2.jpg ü", "fr 2.jpg ü"]
    assert manifest.ids("text").tolist()[3:6] == ["2#0", "2#1", "2#2"]
    assert manifest.positives("image", "text").tolist() == [[n // 3, n] for n in range(12)]


def test_several_files_of_a_language_are_several_captions(tmp_path: Path) -> None:
    root = multi30k(tmp_path)
    split = AlignedSplit(images="image_splits/train.txt", captions={"en": ("raw/train.en", "raw/train.fr")})
    source = Aligned(splits={"train": split}, images=("flickr30k-images",), layout="it")
    assert build(source, "tiny", root).column("text", "text", [0, 1]) == ["en 1.jpg ü", "fr 1.jpg ü"]


def test_file_that_is_not_aligned_is_refused(tmp_path: Path) -> None:
    (multi30k(tmp_path) / "raw/train.de").write_text("eins\n")
    with pytest.raises(DataError, match=r"raw/train\.de: 1 lines, where .*train\.txt has 2: not a caption each"):
        built(tmp_path)


def test_blank_line_is_no_caption_and_keeps_its_place(tmp_path: Path) -> None:
    (multi30k(tmp_path) / "raw/train.de").write_text("\nzwei\n")
    manifest = built(tmp_path)
    assert manifest.languages() == {"en": 4, "de": 3, "fr": 4}
    assert manifest.column("text", "text", [1, 3]) == ["fr 1.jpg ü", "zwei"]
    assert manifest.positives("image", "text").tolist()[:4] == [[0, 0], [0, 1], [1, 2], [1, 3]]


def test_missing_language_is_looked_for_by_name(tmp_path: Path) -> None:
    (multi30k(tmp_path) / "raw/val.fr").unlink()
    with pytest.raises(DataError, match=r"multi30k is not on disk: looked for .*raw/val\.fr; .*flickr30k-images"):
        built(tmp_path)
