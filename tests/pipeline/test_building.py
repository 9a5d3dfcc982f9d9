import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from contract.errors import DataError
from contract.store import TargetStore
from contract.tables import ROWS_PER_BATCH
from pipeline.building import ManifestBuilder, build


@dataclass(frozen=True)
class Numbers:
    """Images that are numbers, with two captions each, some at a time."""

    num_images: int
    step: int

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        for start in range(0, self.num_images, self.step):
            numbers = range(start, min(start + self.step, self.num_images))
            captions = [f"{number}#{k}" for number in numbers for k in range(2)]
            rows = builder.items(
                "image", id=[str(n) for n in numbers], split=["train"] * len(numbers), label=np.array(numbers)
            )
            texts = builder.items("text", id=captions, text=captions, split=["train"] * len(captions))
            builder.pairs("text", "image", [(text, rows[place // 2]) for place, text in enumerate(texts)])
        builder.num_classes, builder.protocol = self.num_images, "numbers"
        builder.note(f"{builder.num_rows('image')} images")


@pytest.mark.parametrize("step", [1, 7, 100])
def test_manifest_does_not_depend_on_how_many_items_are_added_at_a_time(tmp_path: Path, step: int) -> None:
    manifest = build(Numbers(100, step), "numbers", tmp_path)
    assert manifest.ids("image").tolist() == [str(number) for number in range(100)]
    assert manifest.column("text", "text", [0, 199]) == ["0#0", "99#1"]
    assert manifest.positives("image", "text")[:3].tolist() == [[0, 0], [0, 1], [1, 2]]
    assert (manifest.dataset, manifest.protocol, manifest.num_classes) == ("numbers", "numbers", 100)
    assert manifest.media_root == str(tmp_path)
    assert manifest.fingerprint == build(Numbers(100, 100), "numbers", tmp_path).fingerprint


def test_items_beyond_a_record_batch_are_all_there(tmp_path: Path) -> None:
    num_images = ROWS_PER_BATCH + 11
    manifest = build(Numbers(num_images, 50_000), "numbers", tmp_path)
    assert manifest.num_rows("image") == num_images
    assert manifest.column("image", "label") == list(range(num_images))
    assert manifest.column("text", "id", [2 * num_images - 1]) == [f"{num_images - 1}#1"]


def test_what_a_source_notes_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    build(Numbers(5, 2), "numbers", tmp_path, said.append)
    assert said == ["5 images"]


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    class Twice:
        def fill(self, builder: ManifestBuilder, root: Path) -> None:
            for _ in range(2):
                Numbers(5, 2).fill(builder, root)

    with pytest.raises(DataError, match="5 image ids stand there more than once, such as '0'"):
        build(Twice(), "numbers", tmp_path)


def test_builder_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in between, so that a killed process leaves nothing either; the manifest stays readable."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    class Broken:
        def fill(self, builder: ManifestBuilder, root: Path) -> None:
            Numbers(2 * ROWS_PER_BATCH, ROWS_PER_BATCH).fill(builder, root)
            assert list(tmp_path.iterdir()) == []
            raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        build(Broken(), "numbers", tmp_path)
    manifest = build(Numbers(9, 2), "numbers", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert manifest.column("image", "id", [8]) == ["8"]


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError, match="a manifest can't be written there: File too large; make room, or set"):
            build(Numbers(2 * ROWS_PER_BATCH, ROWS_PER_BATCH), "numbers", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# Builds, checks and writes so many rows, opens them again, and prints the most that it held in between.
IN_A_PROCESS = """
import sys
from pathlib import Path
from contract.store import TargetStore
from pipeline.building import ManifestBuilder, build

held = []

def look():
    lines = Path("/proc/self/status").read_text().splitlines()
    held.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

class Numbers:
    def fill(self, builder, root):
        for start in range(0, int(sys.argv[1]), 10_000):
            names = [f"{number:08}" for number in range(start, start + 10_000)]
            builder.items("image", id=names, file=[f"{name}.jpg" for name in names], split=["train"] * len(names))
            look()

manifest = build(Numbers(), "numbers", Path("."))
look()
store = TargetStore.create(Path(sys.argv[2]), manifest)
look()
del manifest
store = TargetStore.open(Path(sys.argv[2]))
assert store.manifest.column("image", "id", [int(sys.argv[1]) - 1]) == [f"{int(sys.argv[1]) - 1:08}"]
store.manifest.rows_fingerprint("image", range(5_000, 6_000))
look()
print(max(held) // 1024)
"""


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    """Ten times the rows, whose table alone takes 90 MB."""

    def held_mb(num_rows: int) -> int:
        command = [sys.executable, "-c", IN_A_PROCESS, str(num_rows), str(tmp_path / f"{num_rows}.zarr")]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert held_mb(1_500_000) < held_mb(150_000) + 32


def test_table_on_the_disk_is_that_of_the_builder(tmp_path: Path) -> None:
    manifest = build(Numbers(20, 3), "numbers", tmp_path)
    found = TargetStore.create(tmp_path / "n.zarr", manifest).manifest
    assert found.fingerprint == manifest.fingerprint
    assert all(found.items[name].equals(manifest.items[name]) for name in manifest.items)
