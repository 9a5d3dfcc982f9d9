"""A manifest of a hundred million images: built, checked, hashed, written into a store, opened, read by shards.

    python benchmarks/manifest.py [--rows 100000000] [--work DIR]

Time and peak anonymous memory of each step; what is mapped from files is not counted, since the kernel takes it
back when it needs the room. Opening and reading happen in a fresh process. It takes three times the table on the
disk, 22 GB for 10^8 rows: one for the table as it is built, in the folder of temporary files, and two in the store
under --work. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract.store import TargetStore
from pipeline.building import ManifestBuilder

ROWS_AT_A_TIME = 50_000
NUM_CLASSES = 1000
NUM_SHARDS, ROWS_PER_SHARD = 1000, 512

Steps = dict[str, dict[str, float]]


def main() -> None:
    """Make it here, read it in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-manifest"))
    parser.add_argument("--step", choices=("make", "read"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.work / "store.zarr"
    if options.step:
        steps = make(path, options.rows) if options.step == "make" else read(path)
        print(json.dumps(steps))
        return
    shutil.rmtree(options.work, ignore_errors=True)
    try:
        steps = in_a_process("make", options) | in_a_process("read", options)
        size_bytes = (path / "precept/manifest/items.image.arrow").stat().st_size
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    for name, step in steps.items():
        print(f"{name:20}{step['time_s']:10.3f} s{step['rss_anon_mb']:10.0f} MB")
    print(json.dumps({"rows": options.rows, "table_gb": round(size_bytes / 1e9, 2), **steps}))


def make(path: Path, num_rows: int) -> Steps:
    """From rows to a store."""
    steps: Steps = {}
    with measured(steps, "build"), ManifestBuilder("benchmark", Path()) as builder:
        Numbered(num_rows).fill(builder, Path())
        manifest = builder.finish()
    with measured(steps, "check"):
        manifest.check()
    with measured(steps, "fingerprint"):
        assert manifest.fingerprint
    with measured(steps, "write into a store"):
        TargetStore.create(path, manifest)
    return steps


def read(path: Path) -> Steps:
    """What a worker asks of it."""
    steps: Steps = {}
    with measured(steps, "open"):
        manifest = TargetStore.open(path).manifest
        num_rows = manifest.num_rows("image")
        assert manifest.segment_starts("image") == [0]
    rng = np.random.default_rng(0)
    with measured(steps, f"{NUM_SHARDS} shards"):
        for start in rng.integers(0, num_rows - ROWS_PER_SHARD, NUM_SHARDS):
            rows = range(int(start), int(start) + ROWS_PER_SHARD)
            manifest.rows_fingerprint("image", rows)
            assert manifest.items["image"].slice(rows.start, len(rows)).to_pylist()[0]["id"] == f"{start:08}"
    with measured(steps, f"{NUM_SHARDS} rows"):
        wanted = rng.integers(0, num_rows, NUM_SHARDS)
        assert manifest.column("image", "id", wanted) == [f"{row:08}" for row in wanted]
    return steps


@dataclass(frozen=True)
class Numbered:
    """Images that are numbers."""

    num_rows: int

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Add them, some at a time."""
        builder.num_classes = NUM_CLASSES
        for start in range(0, self.num_rows, ROWS_AT_A_TIME):
            rows = range(start, min(start + ROWS_AT_A_TIME, self.num_rows))
            ids = [f"{row:08}" for row in rows]
            builder.items(
                "image",
                id=ids,
                file=[f"{name[:4]}/{name}.jpg" for name in ids],
                split=["val" if row % 100 == 0 else "train" for row in rows],
                label=np.asarray(rows) % NUM_CLASSES,
                size_bytes=np.asarray(rows) % 100_003,
            )


def in_a_process(step: str, options: argparse.Namespace) -> Steps:
    command = [sys.executable, __file__, f"--step={step}", f"--rows={options.rows}", f"--work={options.work}"]
    found: Steps = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


@contextmanager
def measured(steps: Steps, name: str) -> Iterator[None]:
    """Time of what is done within, and the most anonymous memory that the process had meanwhile."""
    done, most = threading.Event(), [anonymous_mb()]

    def watch() -> None:
        while not done.wait(0.02):
            most.append(max(most.pop(), anonymous_mb()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    try:
        yield
    finally:
        elapsed_s = time.monotonic() - started
        done.set()
        watcher.join()
    steps[name] = {"time_s": round(elapsed_s, 3), "rss_anon_mb": round(most[0], 1)}


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
