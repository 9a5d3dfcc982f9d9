from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from contract import parts
from contract.errors import ConfigError, DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.sources.cifar import Cifar

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).absolute()
NUM = {"train": 50, "test": 10}  # ten images a batch of CIFAR-10

Array = npt.NDArray[Any]


def dataset(num_classes: int) -> dict[str, Array]:
    """Pixels uint8 [n, 32, 32, 3] and labels [n] of both splits."""
    rng = np.random.default_rng(num_classes)
    found: dict[str, Array] = {}
    for split, num in NUM.items():
        found[f"x_{split}"] = rng.integers(0, 256, (num, 32, 32, 3), np.uint8)
        found[f"y_{split}"] = np.arange(num) % num_classes
    return found


def batches(num_classes: int) -> list[tuple[str, Array, Array]]:
    """Name, planes uint8 [n, 3072] and labels [n] of each batch, as CIFAR's files have them."""
    data = dataset(num_classes)
    planes = {split: data[f"x_{split}"].transpose(0, 3, 1, 2).reshape(-1, 3072) for split in NUM}
    if num_classes == 100:
        return [(split, planes[split], data[f"y_{split}"]) for split in NUM]
    tens = [slice(10 * number, 10 * number + 10) for number in range(5)]
    train = [(f"data_batch_{k + 1}", planes["train"][t], data["y_train"][t]) for k, t in enumerate(tens)]
    return [*train, ("test_batch", planes["test"], data["y_test"])]


def binary(root: Path, num_classes: int) -> None:
    folder = root / ("cifar-10-batches-bin" if num_classes == 10 else "cifar-100-binary")
    folder.mkdir(parents=True)
    for name, planes, labels in batches(num_classes):
        columns = [labels[:, None]] if num_classes == 10 else [labels[:, None] // 5, labels[:, None]]
        (folder / f"{name}.bin").write_bytes(np.concatenate([*columns, planes], axis=1).astype(np.uint8).tobytes())


def python(root: Path, num_classes: int) -> None:
    folder = root / ("cifar-10-batches-py" if num_classes == 10 else "cifar-100-python")
    folder.mkdir(parents=True)
    for name, planes, labels in batches(num_classes):
        content: dict[bytes, Any] = {b"batch_label": b"x", b"data": planes, b"filenames": [b"a.png"] * len(labels)}
        if num_classes == 10:
            content[b"labels"] = labels.tolist()
        else:
            content |= {b"fine_labels": labels.tolist(), b"coarse_labels": (labels // 5).tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def npz(root: Path, num_classes: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / f"cifar{num_classes}.npz", **dataset(num_classes))


def built(root: Path, num_classes: Any = 10, num_val: int = 0) -> Manifest:
    return build(Cifar(num_classes=num_classes, num_val=num_val), f"cifar{num_classes}", root)


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("write", [binary, python, npz])
def test_every_form_makes_the_same_items(
    tmp_path: Path, write: Callable[[Path, int], None], num_classes: int
) -> None:
    write(tmp_path, num_classes)
    data, manifest = dataset(num_classes), built(tmp_path, num_classes)
    assert manifest.num_classes == num_classes
    assert manifest.splits("image") == {"train": 50, "test": 10}
    assert manifest.ids("image").tolist()[48:52] == ["train/00048", "train/00049", "test/00000", "test/00001"]
    assert manifest.column("image", "label") == [*data["y_train"].tolist(), *data["y_test"].tolist()]
    for row, pixels in ((0, data["x_train"][0]), (37, data["x_train"][37]), (59, data["x_test"][9])):
        (file,), (part,) = (manifest.column("image", name, [row]) for name in ("file", "part"))
        assert np.array_equal(parts.read(tmp_path / file, part), pixels)
    assert min(manifest.column("image", "size_bytes")) > 0


def test_batches_may_lie_in_the_root_itself(tmp_path: Path) -> None:
    binary(tmp_path, 10)
    manifest = built(tmp_path / "cifar-10-batches-bin")
    assert manifest.column("image", "file", [0]) == ["data_batch_1.bin"]


def test_as_many_of_each_class_are_set_aside_for_validation(tmp_path: Path) -> None:
    npz(tmp_path, 10)
    manifest = built(tmp_path, num_val=20)
    assert manifest.splits("image") == {"train": 30, "val": 20, "test": 10}
    assert manifest.rows("image", "val").tolist() == list(range(30, 50))
    assert manifest.ids("image").tolist() == built(tmp_path).ids("image").tolist()
    with pytest.raises(ConfigError, match="num_val 15 is not a multiple of the 10 classes"):
        Cifar(num_classes=10, num_val=15)
    with pytest.raises(DataError, match="num_val 60: there are only 5 training images of class 0"):
        built(tmp_path, num_val=60)


def test_dataset_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cifar100 is not on disk: looked for .*train\.bin, .*train, .*cifar100\.npz"
    ):
        built(tmp_path, 100)


def test_missing_batch_is_named(tmp_path: Path) -> None:
    binary(tmp_path, 10)
    (tmp_path / "cifar-10-batches-bin/data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing, though .* is there"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.arange(50) % 11}, "labels from 0 to 10, not 10 classes"),
        ({"y_test": np.arange(9)}, "it has 10 test images and 9 labels"),
        ({"classes": np.array(["a", "b"])}, "it names 2 classes, not 10"),
        ({"x_train": np.zeros((50, 3072), np.uint8)}, r"x_train is uint8 \[50, 3072\], not"),
        ({"y_train": None}, "not a file of CIFAR-10: .*y_train"),
    ],
)
def test_arrays_are_checked(tmp_path: Path, change: dict[str, Array | None], message: str) -> None:
    arrays = {name: array for name, array in (dataset(10) | change).items() if array is not None}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(DataError, match=message):
        built(tmp_path)


def test_labels_of_another_shape_are_taken(tmp_path: Path) -> None:
    data = dataset(10)
    np.savez(tmp_path / "cifar10.npz", **(data | {"y_train": data["y_train"][:, None]}))
    assert built(tmp_path).column("image", "label", [3]) == [3]


def test_file_of_the_wrong_dataset_or_of_none_is_refused(tmp_path: Path) -> None:
    binary(tmp_path, 10)
    for content in (b"", b"x" * 100):
        (tmp_path / "cifar-10-batches-bin/test_batch.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"test_batch\.bin: not a file of CIFAR-10"):
            built(tmp_path)


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    python(tmp_path, 10)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(
        pickle.dumps({b"labels": Malicious(tmp_path / "pwned")})
    )
    with pytest.raises(DataError, match="test_batch: not a file of CIFAR-10"):
        built(tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="needs the real data")
def test_real_arrays_are_read(num_classes: int) -> None:
    manifest = built(REAL / f"cifar{num_classes}", num_classes, num_val=500)
    assert manifest.splits("image") == {"train": 3500, "val": 500, "test": 1000}
    labels = np.array(manifest.column("image", "label"))
    assert np.bincount(labels[manifest.rows("image", "val")]).tolist() == [500 // num_classes] * num_classes
    with np.load(REAL / f"cifar{num_classes}/cifar{num_classes}.npz") as data:
        assert np.array_equal(labels[4000:], data["y_test"])
