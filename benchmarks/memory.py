"""Anonymous memory over epochs of a store that is larger than the memory allowed.

    python benchmarks/memory.py [--rows 10000] [--limit-gb 2] [--work DIR]

A store of 10,000 x [197, 768] float16 (3 GB) with a caption each is read twice through the trainer's loader, every
checksum verified in the first epoch, by a process that may have 2 GB of memory, mapped files included (a memory
control group, where this user may make one; without it, only the figures are taken). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from contract.encodings import Int32
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import TargetStore

SHAPE = (197, 768)
BATCH_SIZE = 256
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


def main() -> None:
    """Write the store, then read it in a process with a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--limit-gb", type=float, default=2.0)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-memory"))
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.work / "store.zarr"
    if options.read:
        read(path)
        return
    shutil.rmtree(options.work, ignore_errors=True)
    write(path, options.rows)
    size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    group, limit = limited(int(options.limit_gb * 2**30))
    command = [sys.executable, __file__, "--read", f"--work={options.work}"]
    process = subprocess.run(command, preexec_fn=lambda: join(group), capture_output=True, text=True)
    if group is not None:
        group.rmdir()
    shutil.rmtree(options.work)
    if process.returncode:
        sys.exit(process.stderr)
    anonymous = json.loads(process.stdout)
    result = {
        "store_gb": round(size_bytes / 1e9, 2),
        "limit": limit,
        "batches": len(anonymous),
        "rss_anon_mb_after_20_batches": anonymous[20],
        "rss_anon_mb_at_the_end": anonymous[-1],
        "rss_anon_mb_largest": max(anonymous),
    }
    print(json.dumps(result))


def write(path: Path, num_rows: int) -> None:
    """Random rows, in pairs of an image and a caption."""
    ids = {modality: [f"{modality}-{row}" for row in range(num_rows)] for modality in ("image", "text")}
    items = {m: items_table({"id": names, "split": ["train"] * num_rows}) for m, names in ids.items()}
    pairs = dict([pairs_table("image", "text", [(row, row) for row in range(num_rows)])])
    store = TargetStore.create(path, Manifest(dataset="memory", protocol="none", items=items, pairs=pairs))
    rng = np.random.default_rng(0)
    for modality, field in (("image", Field(name="patches", shape=SHAPE)), ("text", small())):
        fieldset = FieldSet(name="made", modality=modality, fields=(field,), batch_size=1, provenance={})
        store.add(fieldset)
        for shard in range(store.num_shards(fieldset.key)):
            shape = (len(store.shard_rows(fieldset.key, shard)), *field.shape)
            dtype = np.int64 if field.encoding.kind == "int32" else np.float32
            store.write_shard(fieldset.key, shard, {field.name: rng.random(shape, np.float32).astype(dtype)})


def small() -> Field:
    """A field of captions."""
    return Field(name="tokens", shape=(8, 4), encoding=Int32())


def read(path: Path) -> None:
    """Two epochs through the loader; print the anonymous memory after each batch, in MB."""
    from trainer.loader import Loader
    from trainer.streams import Input, Stream, Streams

    store = TargetStore.open(path)
    inputs = {
        "image": Input(values="image/made/patches", length=""),
        "text": Input(values="text/made/tokens", length=""),
    }
    rows = np.arange(store.manifest.num_rows("image"))
    stream = Stream(
        store=store,
        pair=("image", "text"),
        split="train",
        inputs=inputs,
        targets={},
        weight=1.0,
        anchors=rows,
        starts=np.arange(len(rows) + 1),
        partners=rows,
        num_views={"image": 0, "text": 0},
    )
    streams = Streams([stream], [(store, inputs)], BATCH_SIZE, seed=0, verify_every=10)
    found = []
    for _ in Loader(streams, 0, 2 * streams.steps_per_epoch, "cpu"):
        found.append(anonymous_mb())
    print(json.dumps(found))


def anonymous_mb() -> float:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return round(int(line.split()[1]) / 1024, 1)


def limited(limit_bytes: int) -> tuple[Path | None, str]:
    """A new memory control group with that limit, and what to call it."""
    for root, name in zip(GROUPS, ("memory.limit_in_bytes", "memory.max"), strict=True):
        group = root / f"precept-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(limit_bytes))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        return group, f"{limit_bytes / 2**30:g} GiB, page cache included"
    return None, "none: no memory control group can be made here"


def join(group: Path | None) -> None:
    """Move this process into the group."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))


if __name__ == "__main__":
    main()
