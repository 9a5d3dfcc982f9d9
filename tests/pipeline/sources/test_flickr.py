from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from contract.errors import DataError
from contract.manifest import Manifest
from pipeline.datasets import load

TOKENS = "\n".join(f"{name}.jpg#{k}\t{name} , {k} ." for name in ("10_a", "20_b", "30_c", "40_d") for k in range(2))


def photographs(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("10_a", "20_b", "30_c", "40_d"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.jpg")


def flickr8k(root: Path, captions: str = TOKENS, name: str = "Flickr8k.token.txt") -> Path:
    photographs(root / "Flicker8k_Dataset")
    (root / name).write_text(captions)
    for split, names in (("train", "20_b.jpg\n10_a.jpg\n"), ("dev", "30_c.jpg\n"), ("test", "40_d.jpg")):
        (root / f"Flickr_8k.{split}Images.txt").write_text(names)
    return root


def built(root: Path, name: str = "flickr8k_tokens") -> tuple[Manifest, list[str]]:
    said: list[str] = []
    return load(name).build(root, said.append), said


BARS = "image_name| comment_number| comment\n" + "\n".join(
    f"{name}.jpg| {k}| {name} , {k} ." for name in ("10_a", "20_b", "30_c", "40_d") for k in range(2)
)
COMMAS = "image,caption\n" + "\n".join(
    f'{name}.jpg,"{name} , {k} ."' for name in ("10_a", "20_b", "30_c", "40_d") for k in range(2)
)


@pytest.mark.parametrize(
    ("captions", "name"),
    [
        (TOKENS, "Flickr8k.token.txt"),
        (TOKENS.replace("\n", "\r\n"), "Flickr8k.token.txt"),
        (BARS.replace("30_c.jpg| 1| ", "30_c.jpg| 1   "), "Flickr8k.token.txt"),
        (COMMAS, "captions.txt"),
    ],
)
def test_captions_are_read_in_each_of_their_forms(tmp_path: Path, captions: str, name: str) -> None:
    manifest, said = built(flickr8k(tmp_path, captions, name))
    assert manifest.ids("image").tolist() == ["20_b", "10_a", "30_c", "40_d"]
    assert manifest.column("image", "split") == ["train", "train", "val", "test"]
    assert manifest.column("image", "file", [0]) == ["Flicker8k_Dataset/20_b.jpg"]
    assert manifest.column("text", "text", [0, 1, 5]) == ["20_b , 0 .", "20_b , 1 .", "30_c , 1 ."]
    assert manifest.ids("text").tolist()[:2] == ["20_b#0", "20_b#1"]
    assert said == []


def test_captions_of_images_in_no_split_are_left_out_and_said(tmp_path: Path) -> None:
    root = flickr8k(tmp_path, TOKENS + "\n225_e.jpg.1#0\tA man .\n225_e.jpg.1#1\tA dog .\n")
    manifest, said = built(root)
    assert manifest.num_rows("text") == 8
    assert said == [f"{root}/Flickr8k.token.txt: 1 images are in no split: left out, the first '225_e.jpg.1'"]


def test_flickr30k_has_lists_without_suffixes(tmp_path: Path) -> None:
    photographs(tmp_path / "flickr30k-images")
    (tmp_path / "results_20130124.token").write_text(TOKENS)
    for split, names in (("train", "10_a\n20_b\n"), ("val", "30_c"), ("test", "40_d")):
        (tmp_path / f"{split}.txt").write_text(names)
    manifest, _ = built(tmp_path, "flickr30k_tokens")
    assert manifest.column("image", "file", [3]) == ["flickr30k-images/40_d.jpg"]
    assert manifest.languages() == {"en": 8}


def test_image_in_two_lists_is_refused(tmp_path: Path) -> None:
    (flickr8k(tmp_path) / "Flickr_8k.testImages.txt").write_text("40_d.jpg\n10_a.jpg\n")
    with pytest.raises(DataError, match=r"testImages\.txt: line 2: 10_a stands in a list before"):
        built(tmp_path)


def test_missing_list_is_looked_for_by_name(tmp_path: Path) -> None:
    (flickr8k(tmp_path) / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(
        DataError, match=r"is not on disk: looked for .*/Flickr_8k\.devImages\.txt, .* where DIR holds"
    ):
        built(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("10_a.jpg A dog .", r"token\.txt: line 9: neither `image#number<TAB>caption` nor"),
        ("../a.jpg#0\tA dog .", None),
    ],
)
def test_broken_caption_line_is_named(tmp_path: Path, line: str, message: str | None) -> None:
    root = flickr8k(tmp_path, f"{TOKENS}\n{line}\n")
    if message is None:
        assert built(root)[1] == [
            f"{root}/Flickr8k.token.txt: 1 images are in no split: left out, the first '../a'"
        ]
    else:
        with pytest.raises(DataError, match=message):
            built(root)


def test_listed_path_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (flickr8k(tmp_path) / "Flickr_8k.testImages.txt").write_text("../40_d.jpg\n")
    with pytest.raises(DataError, match=r"testImages\.txt: line 1: '\.\./40_d\.jpg' points out of the data root"):
        built(tmp_path)
