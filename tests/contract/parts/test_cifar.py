import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from contract import parts
from contract.parts import cifar
from contract.views import UndecodableError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
PLANES = IMAGES.transpose(0, 3, 1, 2).reshape(7, 3072)
LABELS = np.array([3, 0, 9, 1, 5, 5, 2], np.uint8)
FINE = np.array([99, 0, 50, 1, 5, 5, 2], np.uint8)


def binary(path: Path, *labels: np.ndarray) -> Path:
    path.write_bytes(np.concatenate([*(one[:, None] for one in labels), PLANES], axis=1).tobytes())
    return path


def test_binary_batches_are_told_apart_by_their_size(tmp_path: Path) -> None:
    ten = binary(tmp_path / "data_batch_1.bin", LABELS)
    hundred = binary(tmp_path / "train.bin", LABELS, FINE)
    for file in (ten, hundred):
        for row in range(7):
            np.testing.assert_array_equal(parts.read(file, f"cifar:{row}"), IMAGES[row])
    assert {name: values.tolist() for name, values in cifar.labels(ten).items()} == {"labels": LABELS.tolist()}
    assert {name: values.tolist() for name, values in cifar.labels(hundred).items()} == {
        "coarse_labels": LABELS.tolist(),
        "fine_labels": FINE.tolist(),
    }
    with pytest.raises(UndecodableError, match=r"^row 7 of train\.bin, which has 7$"):
        parts.read(hundred, "cifar:7")


def test_binary_batch_with_another_size_or_labels_is_refused(tmp_path: Path) -> None:
    file = binary(tmp_path / "data_batch_1.bin", LABELS)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UndecodableError, match="binary CIFAR batch, truncated or broken"):
        parts.read(file, "cifar:0")
    with pytest.raises(UndecodableError, match="binary CIFAR batch, truncated or broken"):
        cifar.labels(binary(tmp_path / "other.bin", LABELS + 100))


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_batches_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    content = {
        "data": PLANES,
        "fine_labels": FINE.tolist(),
        "coarse_labels": LABELS.tolist(),
        "batch_label": b"training batch 1 of 5",
        "filenames": [f"{number}.png" for number in range(7)],
    }
    (tmp_path / "train").write_bytes(pickle.dumps(content, protocol))
    for row in range(7):
        np.testing.assert_array_equal(parts.read(tmp_path / "train", f"cifar-pickle:{row}"), IMAGES[row])
    assert cifar.labels(tmp_path / "train")["fine_labels"].tolist() == FINE.tolist()
    assert cifar.load(tmp_path / "train")["batch_label"] == "training batch 1 of 5"
    with pytest.raises(UndecodableError, match="row 7 of train"):
        parts.read(tmp_path / "train", "cifar-pickle:7")


def test_batch_of_python_2_is_read(tmp_path: Path) -> None:
    """What is distributed: strings of bytes, NumPy by its old names."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x07M\x00\x0ctcnumpy\ndtype\n"
        b"(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", PLANES.size) + PLANES.tobytes() + b"tb"
    )  # fmt: skip
    numbers = b"".join(b"K" + bytes([label]) for label in LABELS)
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + numbers + b"eu.")
    np.testing.assert_array_equal(parts.read(tmp_path / "data_batch_1", "cifar-pickle:6"), IMAGES[6])
    assert cifar.labels(tmp_path / "data_batch_1")["labels"].tolist() == LABELS.tolist()


def test_names_of_classes_are_strings(tmp_path: Path) -> None:
    (tmp_path / "batches.meta").write_bytes(b"\x80\x02}U\x0blabel_names](U\x08airplaneU\x03doges.")
    assert cifar.load(tmp_path / "batches.meta") == {"label_names": ["airplane", "dog"]}


class Runs:
    """Unpickled by calling `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> object:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, np.load, np.frombuffer, getattr])
def test_pickle_that_would_run_something_runs_nothing(tmp_path: Path, protocol: int, function: object) -> None:
    trap = tmp_path / "trap"
    argument = f"mkdir {trap}" if function is os.system else f"__import__('os').mkdir({str(trap)!r})"
    hostile = Runs(function, str(trap) if function is os.mkdir else argument)
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": PLANES, "labels": [1] * 7, "more": hostile}, protocol))
    with pytest.raises(
        UndecodableError, match=r"^it names .*, which a CIFAR batch has no need of: nothing was run$"
    ):
        parts.read(tmp_path / "batch", "cifar-pickle:0")
    assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"Pname\n.",
        b"\x80\x02\x82\x01.",
        b"(i__builtin__\nexit\n.",
        b"cnumpy\ndtype\n(U\x01Otr.",
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I-5\nttb.",
        pickle.dumps({"data": np.array([{}, []], object)}),
        pickle.dumps({"data": np.zeros((2, 3), "V8")}),
        pickle.dumps({"data": PLANES[:, :100]}),
        pickle.dumps({"data": PLANES.astype(np.int16)}),
        pickle.dumps({"data": PLANES, "labels": [1, 2]}),
        pickle.dumps({"data": PLANES, "labels": ["dog"] * 7}),
        pickle.dumps({"labels": [1] * 7}),
        pickle.dumps([1, 2]),
        pickle.dumps({"data": PLANES, "labels": [1] * 7})[:-3000],
        b"]" * 100_000,
    ],
)
def test_pickle_that_is_no_batch_says_so_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UndecodableError) as caught:
        parts.read(tmp_path / "batch", "cifar-pickle:0")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
