"""How fast the target store is read and written, beside a floor and beside other libraries.

    uv pip install -r benchmarks/requirements-store.txt
    OMP_NUM_THREADS=1 python benchmarks/store.py [--work DIR] [--rows 6144] [--rounds 31] [--mosaic-python PATH]

Random batches of 256 samples of [197, 768] float16, 302 kB each, as torch tensors. The floor copies the rows out
of a raw np.memmap into a buffer that is used again and again. What is compared is timed in alternation, with the
same fresh random rows in a round: floor, ours, peer, ours, peer, floor, and so on. Everything is in memory by then.
Every way that a peer has of reading (`benchmarks/peers/`) is checked to deliver the source's bits and tried for a
few rounds; the fastest is timed. mosaicml-streaming lives in an environment and a process of its own, beside a
floor of its own, and the processes take turns; `--mosaic-python` names a Python that has it, else uv makes one.
Loaders with worker processes are left out: they read ahead while others are being timed.

Cold: the files' pages are dropped (fsync, posix_fadvise; mincore says how much stayed), then four batches are read,
ours with `will_need` one batch ahead, the floor with 8 threads of preadv from the raw file. A virtual machine's
disk may still answer from its host's memory.

Write: a shard of 512 rows, 155 MB, with a crc32c for each, once with both flushing it to the disk, which counts,
and once with neither. Ours also refuses what is not finite, and keeps a commit record.

The last line is JSON. Its first keys are medians of ratios of seconds: less is better but in `peers_over_ours`,
where more than 1 is a peer slower than ours. Then quartiles, milliseconds, all that was tried, what was skipped and
why, versions. The work folder takes up to 12 GB at the default size, and is removed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import cold, small, write
from parts.warm import Warm
from peers import Skipped, batches, with_precept
from peers.batches import BATCH, BLOCK

PEERS = ("h5py", "litdata", "tensorstore", "webdataset", "zarr", "zarrs", "mosaic")
# What each library's own documentation shows for reading rows at random, where that is not its fastest mode.
DOCUMENTED = {
    "h5py": "read_direct, contiguous",
    "litdata": "StreamingDataLoader, tensors",
    "tensorstore": "concurrent reads, shards, mapped",
    "mosaic": "StreamingDataset[i], arrays",
    "webdataset": "shuffle buffer of 1000",
    "zarr": "a[i], shards",
    "zarrs": "a[i], shards",
}
PACKAGES = ("precept", "numpy", "torch", "h5py", "litdata", "tensorstore", "webdataset", "zarr", "zarrs")


def main() -> None:
    """Write the source and the store, measure, report."""
    options = parse_options()
    if options.work.exists():
        sys.exit(f"{options.work} exists; give another --work")
    options.work.mkdir(parents=True)
    torch.set_num_threads(1)
    try:
        result = measure(options)
    finally:
        if not options.keep:
            shutil.rmtree(options.work)
    print(*table(result), sep="\n")
    print(json.dumps(result))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-store"))
    parser.add_argument("--keep", action="store_true", help="leave the work folder there")
    parser.add_argument("--rows", type=int, default=6144, help=f"samples, a multiple of {BLOCK}")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--slow-rounds", type=int, default=15, help="of cold reads and of writes")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--mosaic-python", type=Path, help="one that has mosaicml-streaming")
    options = parser.parse_args()
    least = cold.NUM_BATCHES * BATCH + BLOCK
    if options.rows % BLOCK or options.rows < least:
        parser.error(f"--rows must be a multiple of {BLOCK} and at least {least}")
    if options.mosaic_python and not options.mosaic_python.is_file():
        parser.error(f"--mosaic-python: no {options.mosaic_python}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts, one after the other."""
    say(f"write {options.rows:,} rows")
    source = batches.write_source(options.work / "source.bin", options.rows)
    with_precept.write(options.work / "store.zarr", {with_precept.FIELD: source})
    values = np.array(source[:BLOCK])
    del source  # what stays mapped can't be read cold
    warm, peers, skipped = measure_warm(options)
    say("cold")
    gc.collect()
    cold_result = cold.measure(options.work, options.rows, options.slow_rounds)
    say("write")
    try:
        written = write.measure(options.work, values, options.slow_rounds)
    except Skipped as reason:
        written, skipped["write"] = {}, str(reason)
    say("small fields")
    return {
        "ours_over_floor": warm["ours"]["over_floor"]["median"],
        "ours_checked_over_floor": warm["ours, checked"]["over_floor"]["median"],
        "ours_cold_over_preadv": cold_result["over_preadv"]["median"],
        "write_over_tensorstore": written["flushed"]["over_tensorstore"]["median"] if written else None,
        "peers_over_ours": {name: peer["over_ours"]["median"] for name, peer in peers.items()},
        "peers_as_documented_over_ours": {
            name: round(peers[name]["modes_over_floor"][mode] / warm["ours"]["over_floor"]["median"], 3)
            for name, mode in DOCUMENTED.items()
            if name in peers
        },
        "skipped": skipped,
        "warm": warm,
        "peers": peers,
        "cold": cold_result,
        "write": written,
        "small_fields": small.measure(options.work, options.rounds),
        "machine": machine(),
        "versions": versions() | {"mosaicml-streaming": peers.get("mosaic", {}).get("version")},
        "options": {name: str(value) for name, value in vars(options).items()},
    }


def measure_warm(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Ours, the peers by name, and why any were skipped."""
    bench = Warm(options.work, options.rows, options.rounds)
    say("ours")
    ours, peers, skipped = bench.ours(), {}, {}
    for name in options.peers:
        say(name)
        try:
            peers[name] = bench.mosaic(options.mosaic_python) if name == "mosaic" else bench.peer(name)
        except Skipped as reason:
            skipped[name] = str(reason)
            say(f"{name} skipped: {reason}")
    return ours, peers, skipped


def table(result: dict[str, Any]) -> Iterator[str]:
    """What was found, as Markdown."""
    yield "| random batches of 256, warm | mode | ms | x floor | x ours |"
    yield "|---|---|---:|---:|---:|"
    for name, row in result["warm"].items():
        yield f"| {name} | | {cell(row['ms'])} | {cell(row['over_floor'])} | |"
    for name, row in sorted(result["peers"].items(), key=lambda item: item[1]["over_ours"]["median"]):
        cells = (cell(row[figure]) for figure in ("ms", "over_floor", "over_ours"))
        yield f"| {name} | {row['mode']} | {' | '.join(cells)} |"
    for name, reason in result["skipped"].items():
        yield f"| {name} | skipped: {reason} | | | |"
    yield "\n| beside | unit | ours | the other | ratio |"
    yield "|---|---|---:|---:|---:|"
    row = result["cold"]
    yield line("cold batches, 8 threads of preadv", "ms", row["ours_ms"], row["preadv_ms"], row["over_preadv"])
    for name, row in result["write"].items():
        what = f"shard of 512 rows, tensorstore, {name.replace('_', ' ')}"
        yield line(what, "ms", row["ours_ms"], row["tensorstore_ms"], row["over_tensorstore"])
    for name, row in result["small_fields"].items():
        figures = (row["ours_ns_per_row"], row["floor_ns_per_row"], row["over_floor"])
        yield line(f"256 rows of {name}, np.memmap", "ns a row", *figures)
    yield f"\nMedian (quartiles). In memory after dropping: {result['cold']['resident_share_after_drop']:.1%}\n"


def line(what: str, unit: str, *figures: dict[str, float]) -> str:
    return f"| {what} | {unit} | {' | '.join(cell(figure) for figure in figures)} |"


def cell(figures: dict[str, float]) -> str:
    """A median with its quartiles."""
    return f"{figures['median']:g} ({figures['q1']:g}, {figures['q3']:g})"


def machine() -> dict[str, Any]:
    """What it ran on."""
    cpus = [row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "cpu": cpus[0].partition(": ")[2] if cpus else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "load": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
