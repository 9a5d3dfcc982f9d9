from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from contract import parts
from contract.errors import ConfigError, DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.sources.files import HashedSplit
from pipeline.sources.huggingface import HuggingFace

MEDIUM = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TYPES = {"Image": MEDIUM, "Audio": MEDIUM, "ClassLabel": pa.int64(), "string": pa.string(), "int64": pa.int64()}
IMAGE, SOUND = {"_type": "Image"}, {"sampling_rate": 8000, "_type": "Audio"}
LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}
TEXT = {"dtype": "string", "_type": "Value"}
TEXTS = {"feature": TEXT, "_type": "List"}
Features = Mapping[str, Any]


def jpeg(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def wav(num_samples: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.zeros(num_samples), 8000, format="WAV")
    return content.getvalue()


def medium(content: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": content, "path": path}


def arrow_type(feature: Any) -> pa.DataType:
    if isinstance(feature, list):
        return pa.list_(arrow_type(feature[0]))
    if feature["_type"] in ("List", "Sequence"):
        return pa.list_(arrow_type(feature["feature"]))
    if feature["_type"] == "Translation":
        return pa.struct([(language, pa.string()) for language in feature["languages"]])
    return TYPES[feature["dtype"] if feature["_type"] == "Value" else feature["_type"]]


def save(
    folder: Path,
    features: Features,
    rows: Sequence[Mapping[str, Any]],
    *,
    num_files: int = 1,
    split: str | None = None,
    rows_per_batch: int = 1000,
) -> Path:
    """A dataset as `Dataset.save_to_disk` of datasets 3 to 5 writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, arrow_type(feature)) for name, feature in features.items()])
    files = [f"data-{number:05d}-of-{num_files:05d}.arrow" for number in range(num_files)]
    for number, file in enumerate(files):
        some = rows[number * len(rows) // num_files : (number + 1) * len(rows) // num_files]
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(pa.Table.from_pylist(list(some), schema), rows_per_batch)
    state = {"_data_files": [{"filename": file} for file in files], "_fingerprint": "0", "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "license": ""}))
    return folder


def save_splits(root: Path, features: Features, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """A dataset as `DatasetDict.save_to_disk` writes it."""
    for name, rows in splits.items():
        save(root / name, features, rows, split=name)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root


def content_of(root: Path, manifest: Manifest, modality: str) -> list[bytes]:
    contents = []
    columns = (manifest.column(modality, name) for name in ("file", "part", "size_bytes"))
    for file, part, size_bytes in zip(*columns, strict=True):
        content = parts.read(root / file, part)
        assert isinstance(content, bytes)
        assert len(content) == size_bytes
        contents.append(content)
    return contents


def noted(source: HuggingFace, root: Path) -> list[str]:
    lines: list[str] = []
    build(source, "tiny", root, lines.append)
    return lines


def test_columns_are_known_by_their_features(tmp_path: Path) -> None:
    features = {
        "photo": IMAGE,
        "class": LABEL,
        "caption": TEXT,
        "spoken": SOUND,
        "n": {"dtype": "int64", "_type": "Value"},
    }
    rows = [
        {"photo": medium(jpeg(n)), "class": n % 2, "caption": f"photo {n}", "spoken": medium(wav(n + 1)), "n": n}
        for n in range(10)
    ]
    root = save(tmp_path, features, rows, num_files=3, rows_per_batch=2)
    manifest = build(HuggingFace(), "tiny", root)
    assert manifest.ids("image").tolist() == [f"{n}" for n in range(10)]
    assert manifest.column("image", "label") == [n % 2 for n in range(10)]
    assert manifest.num_classes == 2
    assert content_of(root, manifest, "image") == [jpeg(n) for n in range(10)]
    assert content_of(root, manifest, "audio") == [wav(n + 1) for n in range(10)]
    assert manifest.column("text", "text") == [f"photo {n}" for n in range(10)]
    for first, second in (("image", "text"), ("audio", "text"), ("image", "audio")):
        assert manifest.positives(first, second).tolist() == [[n, n] for n in range(10)]
    assert noted(HuggingFace(), root) == ["captions are read from the column caption: `captions` says otherwise"]


def test_splits_are_folders(tmp_path: Path) -> None:
    row = {"image": medium(jpeg(0))}
    root = save_splits(tmp_path, {"image": IMAGE}, {"train": [row, row], "validation": [row], "test": [row]})
    manifest = build(HuggingFace(), "tiny", root)
    assert manifest.ids("image").tolist() == ["train/0", "train/1", "validation/0", "test/0"]
    assert manifest.splits("image") == {"train": 2, "val": 1, "test": 1}


def test_split_of_an_unusual_name_has_to_be_said(tmp_path: Path) -> None:
    row = {"image": medium(jpeg(0))}
    root = save_splits(tmp_path, {"image": IMAGE}, {"train": [row], "extra": [row]})
    with pytest.raises(DataError, match=r"extra: say what it is, such as `splits: \{extra: train\}`"):
        build(HuggingFace(), "tiny", root)
    assert build(HuggingFace(splits={"extra": "test"}), "tiny", root).splits("image") == {"train": 1, "test": 1}


def test_shares_of_a_dataset_without_splits_are_set_aside(tmp_path: Path) -> None:
    rows = [{"image": medium(jpeg(n))} for n in range(40)]
    source = HuggingFace(split=HashedSplit(val=0.3))
    found = build(source, "tiny", save(tmp_path / "one", {"image": IMAGE}, rows)).column("image", "split")
    assert set(found) == {"train", "val"}
    again = build(source, "tiny", save(tmp_path / "other", {"image": IMAGE}, rows, num_files=4))
    assert again.column("image", "split") == found
    with pytest.raises(ConfigError, match="is the split 'test'; leave it out"):
        build(source, "tiny", save(tmp_path / "named", {"image": IMAGE}, rows, split="test"))


@pytest.mark.parametrize("texts", [TEXTS, {"feature": TEXT, "_type": "Sequence"}, [TEXT]])
def test_lists_of_captions_are_captions_each(tmp_path: Path, texts: Any) -> None:
    rows = [
        {"image": medium(jpeg(0)), "sentences": ["One.", " ", "Two."]},
        {"image": medium(jpeg(1)), "sentences": None},
        {"image": medium(jpeg(2)), "sentences": ["Three."]},
    ]
    manifest = build(HuggingFace(language="de"), "tiny", save(tmp_path, {"image": IMAGE, "sentences": texts}, rows))
    assert manifest.column("text", "text") == ["One.", "Two.", "Three."]
    assert manifest.column("text", "id") == ["0#0", "0#1", "2#0"]
    assert manifest.languages() == {"de": 3}


def test_captions_have_the_language_of_their_column_or_row(tmp_path: Path) -> None:
    features = {"image": IMAGE, "en": TEXT, "de": TEXT, "code": TEXT}
    root = save(tmp_path / "a", features, [{"image": medium(jpeg(0)), "en": "dog", "de": "Hund", "code": "fr"}])
    manifest = build(HuggingFace(captions={"en": "en", "de": "de"}), "tiny", root)
    assert manifest.languages() == {"en": 1, "de": 1}
    manifest = build(HuggingFace(captions=("de",), language_column="code"), "tiny", root)
    assert (manifest.languages(), manifest.column("text", "text")) == ({"fr": 1}, ["Hund"])
    features = {"image": IMAGE, "text": {"languages": ["de", "en"], "_type": "Translation"}}
    rows = [{"image": medium(jpeg(0)), "text": {"de": "Hund", "en": "dog"}}]
    manifest = build(HuggingFace(), "tiny", save(tmp_path / "b", features, rows))
    assert manifest.languages() == {"en": 1, "de": 1}


def test_ids_are_taken_from_a_column(tmp_path: Path) -> None:
    features = {"image": IMAGE, "key": TEXT}
    rows = [{"image": medium(jpeg(n)), "key": key} for n, key in enumerate(("x", "y"))]
    manifest = build(HuggingFace(id="key"), "tiny", save(tmp_path, features, rows))
    assert manifest.ids("image").tolist() == ["x", "y"]
    rows[1]["key"] = None
    with pytest.raises(DataError, match=r"data-00000-of-00001.arrow: row 1 has no `key`"):
        build(HuggingFace(id="key"), "tiny", save(tmp_path, features, rows))


def test_content_in_files_is_found_under_the_root(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.jpg").write_bytes(jpeg(0))
    rows = [
        {"image": medium(None, f"{tmp_path.resolve()}/files/a.jpg")},
        {"image": medium(None, "files/a.jpg")},
        {"image": medium(None, "files/gone.jpg")},
        {"image": medium(jpeg(1), "/elsewhere/b.jpg")},
    ]
    manifest = build(HuggingFace(), "tiny", save(tmp_path, {"image": IMAGE}, rows))
    assert manifest.column("image", "file")[:3] == ["files/a.jpg", "files/a.jpg", "files/gone.jpg"]
    assert manifest.column("image", "part") == ["", "", "", "arrow:image.bytes[3]"]
    assert manifest.column("image", "size_bytes")[1:3] == [len(jpeg(0)), -1]


@pytest.mark.parametrize("path", ["/etc/passwd", "../a.jpg"])
def test_content_outside_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = save(tmp_path, {"image": IMAGE}, [{"image": medium(None, path)}])
    with pytest.raises(DataError, match=rf"row 0: '{path}' points out of the data root"):
        build(HuggingFace(), "tiny", root)


def test_rows_without_content_are_left_out_and_said(tmp_path: Path) -> None:
    rows = [{"image": medium(jpeg(0))}, {"image": None}, {"image": medium(None)}, {"image": medium(jpeg(1))}]
    root = save(tmp_path, {"image": IMAGE}, rows)
    assert build(HuggingFace(), "tiny", root).ids("image").tolist() == ["0", "3"]
    assert noted(HuggingFace(), root) == ["left out: 2 rows without an image or a sound, the first 1"]


def test_unlabelled_rows_have_no_label(tmp_path: Path) -> None:
    rows = [{"image": medium(jpeg(n)), "label": label} for n, label in enumerate((1, None, -1))]
    manifest = build(HuggingFace(), "tiny", save(tmp_path, {"image": IMAGE, "label": LABEL}, rows))
    assert manifest.column("image", "label") == [1, -1, -1]
    rows[0]["label"] = 2
    with pytest.raises(DataError, match="row 0: 2 is none of the 2 classes"):
        build(HuggingFace(), "tiny", save(tmp_path, {"image": IMAGE, "label": LABEL}, rows))


def test_labels_without_names_are_numbers(tmp_path: Path) -> None:
    features = {"image": IMAGE, "digit": {"dtype": "int64", "_type": "Value"}}
    splits = {name: [{"image": medium(jpeg(0)), "digit": digit}] for name, digit in (("train", 7), ("test", 3))}
    root = save_splits(tmp_path, features, splits)
    manifest = build(HuggingFace(label="digit"), "tiny", root)
    assert (manifest.column("image", "label"), manifest.num_classes) == ([7, 3], 8)
    assert build(HuggingFace(label="digit", num_classes=10), "tiny", root).num_classes == 10


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        ({"a": IMAGE, "b": IMAGE}, {}, "several columns of Image, a, b; give one as `image`"),
        ({"a": IMAGE}, {"image": "c"}, r"image: .* has no column `c`: `a` \(Image\)"),
        ({"a": IMAGE}, {"captions": ("c",)}, r"has no column `c`; there are: `a` \(Image\)"),
        ({"a": IMAGE}, {"label": "c"}, "has no column `c`"),
    ],
)
def test_columns_that_are_not_there_or_ambiguous_are_named(
    tmp_path: Path, features: Features, settings: dict[str, Any], message: str
) -> None:
    root = save(tmp_path, features, [{name: medium(jpeg(0)) for name in features}])
    with pytest.raises(ConfigError, match=message):
        build(HuggingFace(**settings), "tiny", root)


def test_dataset_without_images_or_sounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column is an Image or Audio; there are: `text` \(Value\)"):
        build(HuggingFace(), "tiny", save(tmp_path, {"text": TEXT}, [{"text": "said"}]))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", "{", "state.json: can't be read"),
        ("state.json", "[]", "state.json: expected an object, found list"),
        ("state.json", "{}", "state.json: has no list `_data_files`"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "x.arrow' points out of the data root"),
        ("state.json", '{"_data_files": [{"filename": "x.arrow"}]}', "x.arrow: can't be read: No such file"),
        ("dataset_info.json", "{}", "dataset_info.json: has no `features`"),
        ("dataset_info.json", '{"features": {"other": {"_type": "Image"}}}', "has no column 'other'"),
        ("data-00000-of-00001.arrow", "", "data-00000-of-00001.arrow: is no Arrow stream, or is cut off"),
        ("data-00000-of-00001.arrow", "hello, world", "is no Arrow stream, or is cut off"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    root = save(tmp_path, {"image": IMAGE}, [{"image": medium(jpeg(0))}])
    (root / file).write_text(content)
    with pytest.raises(DataError, match=message):
        build(HuggingFace(), "tiny", root)


def test_stream_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    root = save(tmp_path, {"image": IMAGE}, [{"image": medium(jpeg(n))} for n in range(6)], rows_per_batch=2)
    path = root / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    for num_bytes in range(0, len(content), 97):
        path.write_bytes(content[:num_bytes])
        with pytest.raises(DataError, match=r"data-00000-of-00001.arrow: "):
            build(HuggingFace(), "tiny", root)


def test_any_flipped_byte_gives_a_manifest_or_a_data_error(tmp_path: Path) -> None:
    features = {"image": IMAGE, "caption": TEXT}
    rows = [{"image": medium(jpeg(n)), "caption": f"{n}"} for n in range(4)]
    path = save(tmp_path, features, rows) / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[generator.integers(0, len(content))] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(damaged)
        try:
            manifest = build(HuggingFace(), "tiny", tmp_path)
        except DataError:
            continue
        assert all(size <= len(content) for size in manifest.column("image", "size_bytes"))


def test_folder_that_was_not_saved_by_datasets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny is not on disk: looked for .*dataset_dict.json, .*state.json"):
        build(HuggingFace(), "tiny", tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    with pytest.raises(DataError, match=r"dataset_dict.json: expected a list `splits`"):
        build(HuggingFace(), "tiny", tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    with pytest.raises(DataError, match="points out of the data root"):
        build(HuggingFace(), "tiny", tmp_path)
