"""`pipeline manifest`, over small folders of real files."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
from PIL import Image
from ruamel.yaml import YAML

from contract import config
from contract.errors import ConfigError, DataError
from pipeline.building import ManifestBuilder
from pipeline.checking.check import check
from pipeline.datasets import Dataset
from pipeline.sources import Source


@dataclass(frozen=True)
class Rows:
    """Items and pairs as they are given: {"image": {column: values}} and {("image", "text"): pairs}."""

    items: dict[str, dict[str, Any]]
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = field(default_factory=dict)
    num_classes: int = 0

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        for modality, columns in self.items.items():
            builder.items(modality, **columns)
        for (first, second), rows in self.pairs.items():
            builder.pairs(first, second, rows)
        builder.num_classes = self.num_classes


def of_files(files: list[str], splits: str = "train", modality: str = "image", **columns: Any) -> Rows:
    """An item for each file; `splits` is one for all of them, or has a word for each."""
    split = splits.split() if " " in splits else [splits] * len(files)
    ids = [f"{row}" for row in range(len(files))]
    return Rows({modality: {"id": ids, "file": files, "split": split, **columns}})


def checked(source: Rows, root: Path, **about: Any) -> list[str]:
    """The lines of the report."""
    said: list[str] = []
    dataset = Dataset(name="tiny", title="Tiny", homepage="none", licence="none", source=source, **about)
    check(dataset, root, root / "found", 2, said.append)
    return said


def problems(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "found/problems.jsonl").read_text().splitlines()]


def write_image(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_sound(path: Path, seed: int, duration_s: float = 1.0) -> None:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(8000 * duration_s))
    soundfile.write(path, samples, 8000)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Five different photographs."""
    files = [f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        write_image(tmp_path / file, number)
    return files


def test_report_gives_counts_captions_languages_and_labels(tmp_path: Path, images: list[str]) -> None:
    source = of_files(images, "train train train val test", label=[0, 1, 1, 0, -1])
    captions = {"id": list("abcd"), "text": ["a", "b", "c", "d"], "split": ["train"] * 4}
    items = source.items | {"text": captions | {"language": ["en", "de", "de", ""]}}
    pairs = {("image", "text"): [(0, 0), (0, 1), (0, 2), (3, 3)]}
    said = checked(Rows(items, pairs, num_classes=3), tmp_path, counts={"train": 3, "test": 9})
    assert [line.split() for line in said[1:4]] == [
        ["train", "val", "test"],
        ["images", "3", "1", "1"],
        ["captions", "4", "0", "0"],
    ]
    assert said[4:] == [
        "captions of an image: 1 to 3, median 2; 3 of 5 images have none",
        "languages of captions: not said 1, de 2, en 1",
        "labels of train images: 2 of 3 classes, 1 to 2 of each; none of 2",
        "labels of val images: 1 of 3 classes, 1 of each; none of 1, 2",
        "labels of test images: 0 of 3 classes",
        "1 of 5 images have no label",
        "note: tiny: 1 test items, where 9 are published",
        "5 images can be decoded",
    ]
    assert not (tmp_path / "found/problems.jsonl").exists()


def test_missing_and_unreadable_files_are_listed_with_their_reasons(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:-60])
    (tmp_path / "3.png").write_text("no image")
    said = checked(of_files(images), tmp_path)
    assert "missing images (1 of 5): 1.png" in said
    assert "2 images can be decoded" in said
    assert any(line.startswith("unreadable images (2 of 5): 2 (not a readable image") for line in said)
    found = problems(tmp_path)
    assert [(one["problem"], one["id"], one["file"]) for one in found] == [
        ("missing", "1", "1.png"),
        ("unreadable", "2", "2.png"),
        ("unreadable", "3", "3.png"),
    ]
    assert all("not a readable image" in one["reason"] for one in found[1:])


def test_file_behind_a_link_out_of_the_root_is_not_read(tmp_path: Path, images: list[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "in.png").symlink_to(tmp_path / images[0])
    write_image(root / "1.png", 1)
    checked(of_files(["in.png", "1.png"]), root)
    assert [(one["problem"], one["file"]) for one in problems(root)] == [("unreadable", "in.png")]


def test_dataset_of_which_nothing_is_readable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"dataset tiny: none of its 2 images can be decoded; see .*problems.jsonl"):
        checked(of_files(["a.png", "b.png"]), tmp_path)


def test_same_content_within_a_split_is_listed_and_no_error(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "4.png").write_bytes((tmp_path / "1.png").read_bytes())
    said = checked(of_files(images), tmp_path)
    assert "same images within a split (1): train 1 = train 4" in said
    (one,) = problems(tmp_path)
    assert one["problem"] == "repeated"
    assert [item["file"] for item in one["items"]] == ["1.png", "4.png"]


@pytest.mark.parametrize("splits", ["train train val test", "train val test test", "train test val val"])
def test_same_content_in_two_splits_is_an_error(tmp_path: Path, images: list[str], splits: str) -> None:
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset tiny: same images in two splits \(1\); see"):
        checked(of_files(images[:4], splits), tmp_path)
    (one,) = problems(tmp_path)
    assert (one["problem"], [item["id"] for item in one["items"]]) == ("leaked", ["1", "2"])


def test_report_shows_one_item_of_each_split_that_shares_a_content(tmp_path: Path, images: list[str]) -> None:
    for file in images[1:]:
        (tmp_path / file).write_bytes((tmp_path / "0.png").read_bytes())
    said: list[str] = []
    source = of_files(images, "train train test train val")
    dataset = Dataset(name="tiny", title="Tiny", homepage="none", licence="none", source=source)
    with pytest.raises(DataError):
        check(dataset, tmp_path, tmp_path / "found", 1, said.append)
    assert "same images in two splits (1): train 0 = test 2 = val 4" in said


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_damaged_memory_of_earlier_runs_is_read_anew(tmp_path: Path, images: list[str], content: bytes) -> None:
    checked(of_files(images), tmp_path)
    (tmp_path / "found/contents.image.arrows").write_bytes(content)
    (tmp_path / "found/contents.image.unfinished").write_bytes(content)
    assert "5 images can be decoded" in checked(of_files(images), tmp_path)


def test_part_of_a_file_and_a_file_of_the_same_content_are_found(tmp_path: Path, images: list[str]) -> None:
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "shard.tar").write_bytes(bytes(512) + content)
    source = of_files([*images, "shard.tar"], part=[""] * 5 + [f"bytes:512+{len(content)}"])
    assert "same images within a split (1): train 1 = train 5" in checked(source, tmp_path)


def test_stretches_of_one_sound_are_different_sounds(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", 0, duration_s=2.0)
    source = of_files(["a.wav"] * 4, modality="audio", start_ms=[0, 1000, 1000, 2000], length_ms=[1000] * 4)
    said = checked(source, tmp_path)
    assert "same sounds within a split (1): train 1 = train 2" in said
    assert "unreadable sounds (1 of 4): 3 (it begins at 2000 ms, and the sound ends at 2000)" in said


def test_sound_that_breaks_off_is_unreadable(tmp_path: Path) -> None:
    """A view would have read no further than it needs."""
    for number in range(2):
        write_sound(tmp_path / f"{number}.flac", number, duration_s=20.0)
    whole = (tmp_path / "0.flac").read_bytes()
    (tmp_path / "0.flac").write_bytes(whole[: len(whole) * 9 // 10])
    assert "1 sounds can be decoded" in checked(of_files(["0.flac", "1.flac"], modality="audio"), tmp_path)
    (one,) = problems(tmp_path)
    assert (one["file"], one["reason"].startswith("not a readable sound")) == ("0.flac", True)


def test_captions_in_two_splits_are_a_note_and_empty_ones_are_listed(tmp_path: Path) -> None:
    texts = ["a dog runs", "a cat", "a dog runs", "a bird", " ", "a bird", "a dog runs"]
    splits = "train train val val val test test"
    captions = {"id": [str(row) for row in range(7)], "text": texts, "split": splits.split()}
    said = checked(Rows({"text": captions}), tmp_path)
    assert "note: 4 captions of val and test stand word for word in another split" in said
    assert "empty captions (1 of 7): 4" in said


def test_published_counts_are_of_the_sounds_where_there_are_no_images(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", 0)
    captions = {"id": ["a", "b"], "text": ["a dog", "a cat"], "split": ["train"] * 2}
    items = of_files(["a.wav"], modality="audio").items | {"text": captions}
    assert not [line for line in checked(Rows(items), tmp_path, counts={"train": 1}) if line.startswith("note")]


def rewrite(path: Path, content: bytes) -> None:
    """Another content of the same size, at the same time."""
    before = path.stat()
    path.write_bytes(content[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_second_check_reads_only_what_has_changed(tmp_path: Path, images: list[str]) -> None:
    assert "5 images can be decoded" in checked(of_files(images), tmp_path)
    for file in images[1:3]:
        rewrite(tmp_path / file, b"no image")
    assert "5 images can be decoded" in checked(of_files(images[::-1]), tmp_path)
    (tmp_path / "1.png").touch()
    assert "4 images can be decoded" in checked(of_files(images), tmp_path)
    write_image(tmp_path / "1.png", 1)
    (tmp_path / "3.png").unlink()
    said = checked(of_files(images), tmp_path)
    assert "4 images can be decoded" in said
    assert "missing images (1 of 5): 3.png" in said


@pytest.mark.parametrize("part", [0.3, 0.7, 1.0])
def test_check_goes_on_where_a_killed_one_stopped(tmp_path: Path, part: float) -> None:
    """What it had written counts, whatever it was cut off in the middle of; the rest is read."""
    files = [f"{number}.png" for number in range(2100)]
    for number, file in enumerate(files):
        Image.new("L", (1, 1), number % 256).save(tmp_path / file)
    checked(of_files(files), tmp_path)
    whole = tmp_path / "found/contents.image.arrows"
    content = whole.read_bytes()
    whole.unlink()
    whole.with_suffix(".unfinished").write_bytes(content[: round(part * len(content))])
    for file in files:
        rewrite(tmp_path / file, b"no image")
    num_known = {0.3: 0, 0.7: 1024, 1.0: 2100}[part]
    if num_known:
        assert f"{num_known:,} images can be decoded" in checked(of_files(files), tmp_path)
    else:
        with pytest.raises(DataError, match="none of its 2,100 images can be decoded"):
            checked(of_files(files), tmp_path)
    assert {path.name for path in (tmp_path / "found").iterdir()} <= {"contents.image.arrows", "problems.jsonl"}


def test_other_annotations_than_the_published_ones_are_said(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "a.csv").write_text("ours")
    right = hashlib.sha256(b"ours").hexdigest()
    assert not [line for line in checked(of_files(images), tmp_path, sha256={"a.csv": right}) if "SHA" in line]
    said = checked(of_files(images), tmp_path, sha256={"a.csv": "0" * 64, "b.csv": "0" * 64})
    assert f"note: {tmp_path}/a.csv: its SHA-256 is {right}, where {'0' * 64} was published" in said
    with pytest.raises(ConfigError, match=r"dataset tiny: sha256: \.\./a.csv leads out of the data root"):
        checked(of_files(images), tmp_path, sha256={"../a.csv": "0" * 64})


def test_command_prints_the_report_and_its_exit_code_says_whether_splits_overlap(project) -> None:
    outcome = project.call("manifest", "tiny.yaml", "--workers", "1")
    assert (outcome.exit_code, outcome.out.splitlines()[-1]) == (0, "30 images can be decoded")
    assert "check image" in outcome.err
    assert (project.folder / "manifests/tiny/contents.image.arrows").is_file()
    (project.data / "images/9.png").write_bytes((project.data / "images/0.png").read_bytes())
    line = project.error_of("manifest", "tiny.yaml", "--out", "there")
    assert "same images in two splits (1); see there/problems.jsonl" in line
    assert project.call("manifest", "tiny.yaml").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny.yaml"], "tinny.yaml: no such file"),
        (["tiny.yaml", "--data-root", "nowhere"], "dataset tiny is not on disk: looked for nowhere"),
        (["tiny.yaml", "--data-root", "tiny.yaml"], "--data-root tiny.yaml is a file, not a folder"),
        (["tiny.yaml", "--out", "tiny.yaml"], "--out tiny.yaml is a file, not a folder"),
        (["tiny.yaml", "--workers", "0"], "Invalid value for '--workers'"),
        (["evil.yaml"], "evil.yaml: `name`: string should match pattern"),
    ],
)
def test_mistake_is_one_line(project, arguments: list[str], message: str) -> None:
    evil = (project.folder / "tiny.yaml").read_text().replace("name: tiny", "name: ../tiny")
    (project.folder / "evil.yaml").write_text(evil)
    assert message in project.error_of("manifest", *arguments)
    assert not (project.folder / "manifests").exists()


def test_plan_says_which_annotations_are_not_the_published_ones(project) -> None:
    with (project.folder / "tiny.yaml").open("a") as file:
        file.write(f"sha256: {{captions.json: '{'0' * 64}'}}\n")
    outcome = project.call("plan", "--dataset", "tiny.yaml", "--config", "encoders.yaml")
    assert outcome.exit_code == 0
    assert "note: data/tiny/captions.json: its SHA-256 is " in outcome.err


DOCS = Path(__file__).parents[2] / "docs/datasets.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_of_the_docs_is_a_dataset(example: str) -> None:
    tree = {"name": "x", "title": "x", "homepage": "x", "licence": "x"} | YAML(typ="safe").load(example)
    config.parse(tree | {"sha256": {}}, Dataset, source="docs/datasets.md")


def test_docs_have_an_example_of_every_kind_of_source() -> None:
    kinds = {source.kind for source in get_args(get_args(Source)[0])}
    assert {YAML(typ="safe").load(example)["source"]["kind"] for example in EXAMPLES} == kinds
