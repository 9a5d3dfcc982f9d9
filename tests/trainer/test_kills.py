"""Runs that are killed with SIGKILL, at random steps and in the middle of a write, end as if nothing had happened.

`python benchmarks/kills.py` is a longer campaign of the same.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract import config
from contract.store import TargetStore

NewStore = Callable[..., TargetStore]

EVERYTHING_WITH_STATE: dict[str, Any] = {
    "objectives": {
        "kd": {"kind": "kd_kl"},
        "infonce": {"kind": "infonce", "weight": 0.5},
    },
    "ema": {"decay": 0.95},
    "accumulate": 2,
    "checkpoints": {"every_steps": 3, "keep": 3},
    "validation": {"metric": "ema/rsum"},
    "epochs": 12,
    "log_every_steps": 2,
    "logs": ["csv"],
}
NUM_STEPS = 24
TIMINGS = ("samples_per_s", "wait_share", "memory_bytes")
COMMAND = ("run", "--config", "../tiny.yaml", "--store", "../tiny.zarr", "--run", "run", "--resume")

# `trainer`, killed when half of its n-th write of more than 10 kB has reached the file: those are checkpoints.
KILLED_IN_A_WRITE = """
import os, signal, sys
from trainer.__main__ import main
left, written = int(sys.argv.pop(1)), os.writev
def writev(file, parts):
    global left
    size = sum(map(len, parts))
    left -= size > 10_000
    if left:
        return written(file, parts)
    os.write(file, b"".join(parts)[: size // 2])
    os.kill(os.getpid(), signal.SIGKILL)
os.writev = writev
main()
"""


@pytest.fixture
def folders(tmp_path: Path, new_store: NewStore, recipe_file: Callable[..., Path]) -> Path:
    """A store, a recipe that has everything a checkpoint must keep, and folders of two runs."""
    new_store(tmp_path / "tiny.zarr")
    recipe_file(EVERYTHING_WITH_STATE)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_killed_run_ends_in_the_bytes_of_one_that_was_not(folders: Path) -> None:
    whole, killed = folders / "whole", folders / "killed"
    assert start(whole).wait() == 0
    rng = random.Random(0)
    num_kills = 0
    for lines in sorted(rng.sample(range(2, NUM_STEPS // 2), 2)):
        process = start(killed)
        while process.poll() is None and num_lines(killed) < lines:
            time.sleep(0.002)
        process.kill()
        num_kills += process.wait() == -signal.SIGKILL
    # The second checkpoint after the start; and `best`, which is written before the epoch's.
    for write in (2, 3):
        process = start(killed, "-c", KILLED_IN_A_WRITE, str(write))
        assert process.wait() == -signal.SIGKILL
        assert list((killed / "run").rglob("*.partial"))
        num_kills += 1
    assert num_kills >= 3  # a slow look may miss a short run's end, but not all of them
    assert start(killed).wait() == 0
    assert content(killed / "run") == content(whole / "run")
    assert not list((killed / "run").rglob("*.partial"))


def start(folder: Path, *program: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(config.SHIPPED), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(program or ("-m", "trainer")), *COMMAND]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=log, stdout=log)


def num_lines(folder: Path) -> int:
    try:
        return (folder / "run/metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def content(run: Path) -> dict[str, Any]:
    """Every file of a run as bytes; of metrics without what depends on the clock."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files.pop("metrics.jsonl").splitlines()]
    rows = [row.split(",") for row in files.pop("metrics.csv").decode().splitlines()]
    record = json.loads(files.pop("run.json"))
    del files["environment.json"]
    return files | {
        "lines": [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines],
        "rows": [row for row in rows if row[1] not in TIMINGS],
        "record": {key: value for key, value in record.items() if key != "created"},
    }
