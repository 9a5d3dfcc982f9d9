from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contract.errors import StoreError
from contract.store import TargetStore
from trainer.batch import Batch
from trainer.loader import NUM_READY, Loader
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.streams import Streams

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


def tensors(batch: Batch) -> dict[str, Tensor]:
    """Everything in a batch, by name."""
    named = {f"target {name}": target for name, target in batch.targets.items()}
    for modality, tokens in batch.inputs.items():
        named[f"{modality} values"] = tokens.values
        if tokens.length is not None:
            named[f"{modality} length"] = tokens.length
    return named


def copied(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors(batch).items()}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def loader_threads() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


@on_devices
@pytest.mark.parametrize("changes", [{}, {"batch_size": 64}, {"streams": [{"pair": "image-text"}]}])
def test_batches_are_those_of_the_streams_in_order(
    recipe: Make, store: TargetStore, changes: dict[str, Any], device: str
) -> None:
    streams = resolve(recipe(changes), [store])
    for start, stop in [(0, 3 * streams.steps_per_epoch), (5, 6), (2, 2)]:
        found = [(batch.pair, copied(batch)) for batch in Loader(streams, start, stop, device)]
        assert len(found) == stop - start
        for step, (pair, values) in zip(range(start, stop), found, strict=True):
            expected = streams.read(step).to(device)
            assert pair == expected.pair
            assert equal(values, tensors(expected))


@on_devices
def test_every_encoding_comes_through_as_the_store_decodes_it(
    recipe: Make, encoded_store: TargetStore, device: str
) -> None:
    streams = resolve(recipe(), [encoded_store])
    for step, batch in enumerate(Loader(streams, 0, streams.steps_per_epoch, device)):
        stream, drawn = streams.draw(step)
        for modality, input_ in stream.inputs.items():
            (values, length, _), rows = batch.inputs[modality], drawn.shown.rows[modality]
            expected = encoded_store.load(input_.values, rows)
            if length is not None:
                np.testing.assert_array_equal(length.cpu(), encoded_store.load(input_.length, rows))
                assert values.shape[1] == length.max() < expected.shape[1]
                expected = expected[:, : values.shape[1]]
            np.testing.assert_allclose(values.cpu(), expected, rtol=1e-5, atol=1e-3)  # pixels: sums of 12 x 255
        logits = encoded_store.load("image/teacher/logits", drawn.shown.rows["image"])
        np.testing.assert_allclose(batch.targets["logits"].cpu(), logits, rtol=1e-5, atol=1e-6)


def test_values_that_are_cast_lie_in_buffers_that_come_back(recipe: Make, encoded_store: TargetStore) -> None:
    streams = resolve(recipe(), [encoded_store])
    addresses: dict[str, list[int]] = {}
    for step, batch in enumerate(Loader(streams, 0, 12 * streams.steps_per_epoch, "cpu")):
        stream, _ = streams.draw(step)
        expected = streams.read(step).to("cpu")
        torch.testing.assert_close(batch.targets["logits"], expected.targets["logits"])
        for modality, tokens in batch.inputs.items():
            torch.testing.assert_close(tokens.values, expected.inputs[modality].values, rtol=1e-5, atol=1e-3)
            if encoded_store.field(stream.inputs[modality].values).encoding.casts:
                addresses.setdefault(modality, []).append(tokens.values.data_ptr())
    for found in addresses.values():
        assert len(set(found[len(found) // 2 :])) <= NUM_READY + 1  # every batch is then as long as one before it


def test_buffers_come_back_and_are_never_more(recipe: Make, store: TargetStore) -> None:
    # 47 pairs of a kind: with 32 in a batch one of each in an epoch, and no step reads more rows than another.
    streams = resolve(recipe({"batch_size": 32}), [store])
    addresses: dict[str, list[int]] = {}
    for batch in Loader(streams, 0, 50, "cpu"):
        for name, tensor in tensors(batch).items():
            addresses.setdefault(name, []).append(tensor.data_ptr())
    assert len(addresses["image values"]) == 50
    for found in addresses.values():
        assert len(set(found)) <= NUM_READY + 1
        assert set(found[-8:]) <= set(found[:8])


@pytest.mark.parametrize("num_threads", [1, 2, 16])
@pytest.mark.parametrize("num_ready", [1, 3, 8])
def test_batch_is_left_alone_until_the_next_is_asked_for(
    recipe: Make, store: TargetStore, monkeypatch: pytest.MonkeyPatch, num_threads: int, num_ready: int
) -> None:
    monkeypatch.setattr("trainer.loader.NUM_THREADS", num_threads)
    monkeypatch.setattr("trainer.loader.NUM_READY", num_ready)
    streams = resolve(recipe({"batch_size": 8}), [store])
    rng = np.random.default_rng(num_threads)
    for step, batch in enumerate(Loader(streams, 0, 60, "cpu")):
        expected = tensors(streams.read(step).to("cpu"))
        assert equal(tensors(batch), expected)
        time.sleep(rng.choice([0, 0, 0.0005, 0.005]))
        assert equal(tensors(batch), expected)


@needs_gpu
def test_buffers_are_not_filled_anew_before_the_gpu_has_copied_them(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe({"batch_size": 8}), [store])
    matrix = torch.zeros(8192, 8192, device="cuda")
    found = []
    for batch in Loader(streams, 0, 40, "cuda"):
        found.append(batch)
        for _ in range(4):  # a queue of work, behind which the next batches' copies wait
            torch.mm(matrix, matrix)
    for step, batch in enumerate(found):
        assert equal(tensors(batch), tensors(streams.read(step).to("cuda")))


def test_readers_do_not_wait_for_the_consumer(recipe: Make, store: TargetStore) -> None:
    """While a batch is used, the next ones are read, and no more of them than there are slots."""
    streams = resolve(recipe(), [store])
    read: list[int] = []

    class Watched(Streams):
        def draw(self, step: int) -> Any:
            read.append(step)
            return super().draw(step)

    watched = Watched(streams.streams, streams.stores, streams.batch_size, streams.seed)
    batches = iter(Loader(watched, 0, 100, "cpu"))
    next(batches)
    deadline = time.monotonic() + 10
    while max(read) < 2 * NUM_READY and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    # Batches 1 to 3 have been read, and with each of them the one three later was asked of the disk.
    assert set(read) == set(range(2 * NUM_READY + 1))
    assert len(read) < 2 * len(set(read))  # a step is drawn once for both, unless two threads are at it just then
    batches.close()  # type: ignore[attr-defined]


def fail_at_the_first_batch(streams: Streams) -> None:
    for _ in Loader(streams, 0, 1000, "cpu"):
        raise ZeroDivisionError


def test_loader_that_is_left_early_ends_its_threads(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    closed = iter(Loader(streams, 0, 1000, "cpu"))
    next(closed)
    assert loader_threads() > 0
    closed.close()  # type: ignore[attr-defined]
    assert loader_threads() == 0
    for _ in Loader(streams, 0, 1000, "cpu"):
        break
    assert loader_threads() == 0
    with pytest.raises(ZeroDivisionError):
        fail_at_the_first_batch(streams)
    assert loader_threads() == 0
    assert len(list(Loader(streams, 0, 7, "cpu"))) == 7
    assert loader_threads() == 0


def num_until_error(streams: Streams, message: str) -> int:
    """How many batches come before the loader raises a StoreError with that message."""
    pairs: list[tuple[str, str]] = []
    with pytest.raises(StoreError, match=message):
        pairs.extend(batch.pair for batch in Loader(streams, 0, 2 * streams.steps_per_epoch, "cpu"))
    assert loader_threads() == 0
    return len(pairs)


def first_reading(streams: Streams, modality: str, rows: range) -> int:
    """The first step that reads any of these rows."""
    return next(
        step
        for step in itertools.count()
        if not set(rows).isdisjoint(streams.draw(step)[1].shown.rows.get(modality, np.empty(0)).tolist())
    )


def test_error_of_a_reading_thread_comes_at_its_own_step(
    recipe: Make, tmp_path: Path, coded_store: NewStore
) -> None:
    path = coded_store(tmp_path / "tiny.zarr", rows_per_shard=2).path
    for shard in range(8, 12):
        streams = resolve(recipe({"batch_size": 2}), [TargetStore.open(path)])
        step = first_reading(streams, "audio", range(2 * shard, 2 * shard + 2))
        assert step > NUM_READY
        folder = Path(path) / f"audio/ears/patch_embeddings/c/{shard}"
        shutil.move(folder, tmp_path / "aside")
        assert num_until_error(streams, rf"{folder}/.* is missing.*`pipeline repair") == step
        shutil.move(tmp_path / "aside", folder)


def test_damaged_row_stops_the_loader_in_an_epoch_that_verifies(
    recipe: Make, tmp_path: Path, coded_store: NewStore
) -> None:
    """Rows of more than 32 kB are chunks with a checksum of their own; smaller ones share one."""
    store = coded_store(tmp_path / "tiny.zarr", num_views=0, shape=(2, 6000))
    streams = resolve(recipe({"batch_size": 2}), [store])
    row = int(streams.draw(9)[1].shown.rows["image"][1])
    damage(store, row, 2 * 6000 * 4)
    step = first_reading(streams, "image", range(row, row + 1))
    assert num_until_error(streams, rf"shard {row // 32}, row {row} .*'image-{row:03}'.*pipeline repair") == step
    unverified = resolve(recipe({"batch_size": 2, "verify_every_epochs": 0}), [store])
    assert len(list(Loader(unverified, 0, 60, "cpu"))) == 60


def damage(store: TargetStore, row: int, row_bytes: int) -> None:
    """Flip a bit of a row of the images, which are a chunk each, 32 in a shard."""
    path = Path(store.path) / f"image/eyes/patch_embeddings/c/{row // 32}/0/0"
    content = bytearray(path.read_bytes())
    content[row % 32 * (row_bytes + 4) + row_bytes // 2] ^= 1
    path.write_bytes(content)


READ_AN_EPOCH = """
import sys
from pathlib import Path
from contract import config
from contract.store import TargetStore
from trainer.loader import Loader
from trainer.recipes import Recipe
from trainer.resolve import resolve

def anonymous_mb():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

streams = resolve(config.load(Path(sys.argv[1]), Recipe), [TargetStore.open(Path(sys.argv[2]))])
seen = [anonymous_mb() for batch in Loader(streams, 0, streams.steps_per_epoch, "cpu")]
print(len(seen), max(seen[8:]) - min(seen[8:]), max(seen) - seen[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_an_epoch_of_a_store_that_is_larger_than_the_buffers(
    recipe_file: Callable[..., Path], tmp_path: Path, large_store: Callable[[Path], TargetStore]
) -> None:
    store = large_store(tmp_path / "large.zarr")
    size_bytes = sum(path.stat().st_size for path in tmp_path.rglob("c/*/*/*"))
    assert size_bytes > 280e6
    config = recipe_file(
        {"streams": [{"pair": "image-audio"}], "targets": {}, "objectives": {"i": {"kind": "infonce"}}}
    )
    command = [sys.executable, "-c", READ_AN_EPOCH, str(config), str(store.path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    num_steps, spread_mb, growth_mb = map(float, found.split())
    assert num_steps == 62
    # A batch of 16 images of 302 kB is 4.8 MB stored and 9.7 MB decoded; there are four slots, and the allocator
    # keeps freed batches for each thread that made one.
    assert spread_mb < 60
    assert growth_mb < 90
