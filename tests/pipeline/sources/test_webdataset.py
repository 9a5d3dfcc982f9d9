from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.errors import ConfigError, DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.sources.webdataset import WebDataset

Members = Sequence[tuple[str, bytes]]


def jpeg(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def flac(num_samples: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.zeros(num_samples), 8000, format="FLAC")
    return content.getvalue()


def write_tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, caption: str, shade: int = 0) -> Members:
    return [(f"{key}.jpg", jpeg(shade)), (f"{key}.txt", caption.encode())]


def write_special(path: Path, info: tarfile.TarInfo) -> None:
    """A tar of one ordinary sample and that member."""
    with tarfile.open(path, "w") as tar:
        for name, content in sample("a", "said"):
            ordinary = tarfile.TarInfo(name)
            ordinary.size = len(content)
            tar.addfile(ordinary, io.BytesIO(content))
        tar.addfile(info)


def content_of(root: Path, manifest: Manifest, modality: str) -> list[bytes]:
    contents = []
    columns = (manifest.column(modality, name) for name in ("file", "part", "size_bytes"))
    for file, part, size_bytes in zip(*columns, strict=True):
        first, count = (int(number) for number in part.removeprefix("bytes:").split("+"))
        assert count == size_bytes
        contents.append((root / file).read_bytes()[first : first + count])
    return contents


def noted(source: WebDataset, root: Path) -> list[str]:
    lines: list[str] = []
    build(source, "tiny", root, lines.append)
    return lines


def test_items_are_the_bytes_of_the_members(tmp_path: Path) -> None:
    images = [jpeg(shade) for shade in range(4)]
    for shard in range(2):
        members = [
            (f"{n:04d}.{extension}", content)
            for n in (2 * shard, 2 * shard + 1)
            for extension, content in (("jpg", images[n]), ("txt", f"caption {n}\n".encode()))
        ]
        write_tar(tmp_path / f"train/{shard:05d}.tar", members)
    manifest = build(WebDataset(), "tiny", tmp_path)
    assert manifest.ids("image").tolist() == [f"train/{n // 2:05d}/{n:04d}" for n in range(4)]
    assert manifest.column("text", "id") == [f"train/{n // 2:05d}/{n:04d}#0" for n in range(4)]
    assert manifest.column("text", "text") == [f"caption {n}" for n in range(4)]
    assert manifest.positives("image", "text").tolist() == [[n, n] for n in range(4)]
    assert content_of(tmp_path, manifest, "image") == images


def test_images_sounds_and_captions_of_a_sample_belong_together(tmp_path: Path) -> None:
    members = [("a.png", jpeg(1)), ("a.flac", flac(5)), ("a.txt", b"both"), ("b.wav", flac(6)), ("b.txt", b"heard")]
    manifest = build(WebDataset(), "tiny", write_tar(tmp_path / "t.tar", members).parent)
    assert manifest.positives("image", "text").tolist() == [[0, 0]]
    assert manifest.positives("audio", "text").tolist() == [[0, 0], [1, 1]]
    assert manifest.positives("image", "audio").tolist() == [[0, 0]]
    assert content_of(tmp_path, manifest, "audio") == [flac(5), flac(6)]


def test_split_is_a_word_of_the_path(tmp_path: Path) -> None:
    for name in ("cc3m-validation-0000.tar", "test/0000.tar", "more/0000.tar"):
        write_tar(tmp_path / name, sample("a", "said"))
    manifest = build(WebDataset(), "tiny", tmp_path)
    found = zip(manifest.ids("image").tolist(), manifest.column("image", "split"), strict=True)
    assert dict(found) == {"cc3m-validation-0000/a": "val", "more/0000/a": "train", "test/0000/a": "test"}


def test_shards_are_named_by_split_with_braces_and_patterns(tmp_path: Path) -> None:
    for name in ("x/00.tar", "x/01.tar", "x/02.tar", "y.tar"):
        write_tar(tmp_path / name, sample("a", "said"))
    shards = {"train": ("x/{00..01}.tar",), "validation": ("{y,x/02}.tar",)}
    manifest = build(WebDataset(shards=shards), "tiny", tmp_path)
    assert manifest.ids("image").tolist() == ["x/00/a", "x/01/a", "y/a", "x/02/a"]
    assert manifest.splits("image") == {"train": 2, "val": 2}
    manifest = build(WebDataset(shards={"test": ("x/*.tar",)}), "tiny", tmp_path)
    assert manifest.splits("image") == {"test": 3}


@pytest.mark.parametrize(
    ("shards", "error", "message"),
    [
        ({"train": ("{00..02}.tar",)}, DataError, r"shards.train: \{00..02\}.tar: there is no .*/02.tar"),
        ({"train": ("*.gone",)}, DataError, "there is no"),
        ({"train": ("00.tar",), "val": ("*.tar",)}, ConfigError, "00.tar is of the split train and of val"),
        ({"train": ("../*.tar",)}, DataError, "points out of the data root"),
        ({"train": ("{00}.tar",)}, ConfigError, r"expected \{00000..00099\} or \{a,b\}"),
        ({"train": ("{5..2}.tar",)}, ConfigError, "expected"),
        ({"dogs": ("00.tar",)}, DataError, "'dogs' is not a split"),
    ],
)
def test_shards_that_are_not_there_are_named(
    tmp_path: Path, shards: dict[str, tuple[str, ...]], error: type[Exception], message: str
) -> None:
    for name in ("00.tar", "01.tar"):
        write_tar(tmp_path / name, sample("a", "said"))
    with pytest.raises(error, match=message):
        build(WebDataset(shards=shards), "tiny", tmp_path)


def test_folder_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tiny is not on disk"):
        build(WebDataset(), "tiny", tmp_path)


def test_compressed_tar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("a", "said"))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(DataError, match=r"b.tar.gz: .*gunzip"):
        build(WebDataset(), "tiny", tmp_path)
    (tmp_path / "b.tar.gz").rename(tar)
    with pytest.raises(DataError, match=r"a.tar: not a whole tar.*decompress"):
        build(WebDataset(), "tiny", tmp_path)


def test_ambiguous_split_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "test/train-0.tar", sample("a", "said"))
    with pytest.raises(ConfigError, match="test and train; say which"):
        build(WebDataset(), "tiny", tmp_path)


def test_captions_are_taken_from_the_first_place_that_has_them(tmp_path: Path) -> None:
    members = [
        ("a.jpg", jpeg(0)),
        ("a.json", json.dumps({"caption": "in JSON"}).encode()),
        ("a.txt", b"in text"),
        ("b.jpg", jpeg(1)),
        ("b.json", json.dumps({"caption": ["one", "", "two"], "meta": {"kind": 3}}).encode()),
        ("c.jpg", jpeg(2)),
        ("c.json", b"{}"),
    ]
    write_tar(tmp_path / "t.tar", members)
    manifest = build(WebDataset(label="json.meta.kind", language="de"), "tiny", tmp_path)
    assert manifest.column("text", "text") == ["in text", "one", "two"]
    assert manifest.column("text", "id") == ["t/a#0", "t/b#0", "t/b#1"]
    assert manifest.languages() == {"de": 3}
    assert manifest.column("image", "label") == [-1, 3, -1]
    manifest = build(WebDataset(captions=("json.caption",)), "tiny", tmp_path)
    assert manifest.column("text", "text") == ["in JSON", "one", "two"]


def test_labels_are_numbers_below_the_number_of_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.jpg", jpeg(0)), ("a.cls", b"6\n"), ("b.jpg", jpeg(0)), ("b.cls", b"0")])
    manifest = build(WebDataset(), "tiny", tmp_path)
    assert (manifest.column("image", "label"), manifest.num_classes) == ([6, 0], 7)
    assert build(WebDataset(num_classes=10), "tiny", tmp_path).num_classes == 10
    with pytest.raises(ConfigError, match=r"num_classes: 5, and t/a has the label 6"):
        build(WebDataset(num_classes=5), "tiny", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.cls", b"dog", r"a.cls: expected the number of a class, found 'dog'"),
        ("a.cls", b"-3", r"a.cls: expected the number of a class, found '-3'"),
        ("a.txt", b"\xff\xfe\xff", "a.txt can't be read"),
        ("a.json", b"{", "a.json can't be read"),
        ("a.json", b"[" * 100_000, "a.json can't be read"),
        ("a.json", b'{"caption": 7}', "a.json, caption: expected a text or a list of texts, found '7'"),
        ("a.json", rb'{"caption": "\ud800"}', "a.json, caption: expected a text"),
        ("a.txt", b"x" * ((1 << 22) + 1), "a.txt has 4,194,305 bytes"),
        ("a.jpg", b"", "a.jpg is there twice in one sample"),
    ],
)
def test_broken_members_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_tar(tmp_path / "t.tar", [("a.jpg", jpeg(0)), (name, content)])
    with pytest.raises(DataError, match=rf"t.tar: {message}"):
        build(WebDataset(), "tiny", tmp_path)


def test_incomplete_samples_are_counted(tmp_path: Path) -> None:
    whole = [member for n in range(3) for member in sample(f"{n}", "said")]
    others = [("7.jpg", jpeg(0)), ("8.txt", b"no image"), ("9.jpg", jpeg(0)), ("9.txt", b"  ")]
    write_tar(tmp_path / "t.tar", [*whole, *others])
    assert noted(WebDataset(), tmp_path) == [
        "2 samples hold image where most hold image + caption, the first t/7",
        "left out: 1 samples without an image or a sound, the first t.tar: 8",
    ]
    assert build(WebDataset(), "tiny", tmp_path).splits("image") == {"train": 5}


def test_members_that_are_no_samples_are_counted(tmp_path: Path) -> None:
    members = [("a.mp4", b"1"), ("a.seg.png", b"2"), ("._a.jpg", b"3"), ("a.webp", b"4"), ("README", b"5")]
    write_tar(tmp_path / "t.tar", [*sample("a", "said"), *members, *sample("b", "said")])
    assert noted(WebDataset(), tmp_path) == [
        "left out: 1 members that are no image, sound, caption or label, the first t.tar: a.mp4",
        "left out: 1 members with more dots in their names, the first t.tar: a.seg.png",
        "left out: 2 members without a name before or after a dot, the first t.tar: ._a.jpg",
        "left out: 1 more image members of a sample that has one, the first t.tar: a.webp",
    ]


def special(name: str, type: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (special("b.jpg", tarfile.SYMTYPE, "/etc/passwd"), "members that are links"),
        (special("b.jpg", tarfile.LNKTYPE, "a.jpg"), "members that are links"),
        (special("b.jpg", tarfile.CHRTYPE), "members that are devices or the like"),
        (special("b.jpg", tarfile.FIFOTYPE), "members that are devices or the like"),
        (special("../../b.jpg", tarfile.REGTYPE), "members whose name points out of the tar"),
        (special("/etc/b.jpg", tarfile.REGTYPE), "members whose name points out of the tar"),
    ],
)
def test_escaping_members_are_left_out_and_said(tmp_path: Path, info: tarfile.TarInfo, reason: str) -> None:
    write_special(tmp_path / "t.tar", info)
    assert noted(WebDataset(), tmp_path) == [f"left out: 1 {reason}, the first t.tar: {info.name}"]
    assert build(WebDataset(), "tiny", tmp_path).ids("image").tolist() == ["t/a"]


def test_sparse_member_is_left_out(tmp_path: Path) -> None:
    info = tarfile.TarInfo("b.jpg")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,0", "GNU.sparse.size": "0"}
    write_special(tmp_path / "t.tar", info)
    assert noted(WebDataset(), tmp_path) == ["left out: 1 members that are sparse, the first t.tar: b.jpg"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read(tmp_path: Path, format: int) -> None:
    key = f"{'folder/' * 40}größe"
    write_tar(tmp_path / "t.tar", sample(key, "said", shade=9), format)
    manifest = build(WebDataset(), "tiny", tmp_path)
    assert manifest.ids("image").tolist() == [f"t/{key}"]
    assert content_of(tmp_path, manifest, "image") == [jpeg(9)]


def test_folders_in_a_tar_are_part_of_the_key(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        (tmp_path / "x/v1.0").mkdir(parents=True)
        (tmp_path / "x/v1.0/a.jpg").write_bytes(jpeg(0))
        tar.add(tmp_path / "x", ".")
    assert build(WebDataset(), "tiny", tmp_path).ids("image").tolist() == ["t/v1.0/a"]
    assert noted(WebDataset(), tmp_path) == []


def whole_tar(folder: Path) -> bytes:
    path = write_tar(folder / "t.tar", [("a.jpg", b"1" * 700), ("b.jpg", b"2" * 700)], tarfile.USTAR_FORMAT)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        (0, "not a whole tar: empty file"),
        (300, "not a whole tar"),
        (512 + 600, "not a whole tar: unexpected end of data, in 1,112 bytes"),
        (512 + 1024, "is cut off at byte 1,536"),
        (1536 + 100, "is cut off at byte 1,636"),
        (1536 + 512 + 800, "not a whole tar: unexpected end of data"),
        (2 * 1536, "is cut off at byte 3,072"),
    ],
)
def test_truncated_tar_is_named_with_its_offset(tmp_path: Path, num_bytes: int, message: str) -> None:
    content = whole_tar(tmp_path)
    (tmp_path / "t.tar").write_bytes(content[:num_bytes])
    with pytest.raises(DataError, match=rf"t.tar: {message}.*"):
        build(WebDataset(), "tiny", tmp_path)


def test_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    content = bytearray(whole_tar(tmp_path))
    content[1536 + 10] ^= 1
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"t.tar: after byte 1,536 come neither"):
        build(WebDataset(), "tiny", tmp_path)


def test_concatenated_tars_are_refused(tmp_path: Path) -> None:
    content = whole_tar(tmp_path)
    (tmp_path / "t.tar").write_bytes(content + content)
    with pytest.raises(DataError, match="several tars were written into one file"):
        build(WebDataset(), "tiny", tmp_path)


def test_any_flipped_byte_gives_a_manifest_or_a_data_error(tmp_path: Path) -> None:
    members = [*sample("folder/" * 30 + "größe", "said"), ("b.jpg", b"1")]
    content = write_tar(tmp_path / "t.tar", members).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = generator.integers(0, 256)
        (tmp_path / "t.tar").write_bytes(damaged)
        try:
            manifest = build(WebDataset(), "tiny", tmp_path)
        except DataError:
            continue
        assert all(size < len(content) for size in manifest.column("image", "size_bytes"))


def test_link_out_of_the_data_root_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "elsewhere/t.tar", sample("a", "said"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/t.tar").symlink_to(tmp_path / "elsewhere/t.tar")
    with pytest.raises(DataError, match="link out of the data root"):
        build(WebDataset(), "tiny", tmp_path / "root")


def test_key_that_comes_back_later_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [*sample("a", "x"), *sample("b", "y"), *sample("a", "z")])
    with pytest.raises(DataError, match=r"stand there more than once, such as 't/a"):
        build(WebDataset(), "tiny", tmp_path)


def test_shards_read_by_processes_are_in_order(tmp_path: Path) -> None:
    for n in range(20):
        write_tar(tmp_path / f"{n:05d}.tar", [*sample(f"{n}", f"caption {n}", n), (f"{n}.mp4", b"x")])
    lines: list[str] = []
    manifest = build(WebDataset(), "tiny", tmp_path, lines.append)
    assert manifest.ids("image").tolist() == [f"{n:05d}/{n}" for n in range(20)]
    assert content_of(tmp_path, manifest, "image") == [jpeg(n) for n in range(20)]
    assert lines == ["left out: 20 members that are no image, sound, caption or label, the first 00000.tar: 0.mp4"]
    (tmp_path / "00007.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"00007.tar: not a whole tar"):
        build(WebDataset(), "tiny", tmp_path)
