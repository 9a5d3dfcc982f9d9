"""A kill campaign against `trainer run`: every run ends in the bytes of one that was never killed.

    python benchmarks/kills.py [--kills 60] [--seed 0] [--work DIR]

A small store is written, and a recipe that has all that a checkpoint must keep: dropout, a moving average, an
objective with a parameter of its own, accumulated gradients, checkpoints within epochs. One run goes through.
Others get SIGKILL again and again, and are resumed each time by the same command, until they end: at a random
instant of the process, when a random step has been logged, or as soon as a file is being written. Then every
file of the run must be, byte for byte, that of the run which was never killed: checkpoints, `best`, the
embeddings, and of metrics.jsonl all but the timings. Now and then the newest checkpoint is damaged as well, and
the run must go back to the one before. The last line is JSON; any difference ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from contract.encodings import Float32
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import TargetStore

SPLITS = ["train"] * 96 + ["val"] * 24 + ["test"] * 24
TIMINGS = ("samples_per_s", "wait_share", "memory_bytes")
COMMAND = ("run", "--config", "../recipe.json", "--store", "../store.zarr", "--run", "run", "--resume")
LOOK_EVERY_S = 0.0005
# How many runs' newest checkpoint gets a bit flipped, or is cut short, once: one in so many kills.
KILLS_PER_DAMAGE = 8

ADAPTER = {"kind": "transformer", "depth": 1, "num_heads": 4, "dropout": 0.1, "token_dropout": 0.25}
RECIPE: dict[str, Any] = {
    "name": "kills",
    "inputs": {"image": "patches", "text": "tokens"},
    "targets": {"logits": "logits"},
    "student": {
        "kind": "mlp",
        "width": 128,
        "embedding_dim": 256,
        "num_heads": 4,
        "adapters": {"image": ADAPTER, "text": ADAPTER},
    },
    "objectives": {"kd": {"kind": "kd_kl"}, "infonce": {"kind": "infonce"}, "rank": {"kind": "ranking"}},
    "schedule": {"kind": "cosine"},
    "batch_size": 16,
    "accumulate": 2,
    "epochs": 14,
    "ema": {"decay": 0.95},
    "validation": {"metric": "ema/rsum"},
    "checkpoints": {"every_steps": 2, "keep": 3},
    "log_every_steps": 1,
}


class WrongError(Exception):
    """Something that must never happen."""


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/kills"))
    options = parser.parse_args()
    work = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_store(work / "store.zarr")
    (work / "recipe.json").write_text(json.dumps(RECIPE))
    began = time.monotonic()
    if start(work / "whole").wait():
        sys.exit(f"FAILED: the run that is not killed; see {work}/whole/log")
    took_s = time.monotonic() - began
    try:
        print(
            json.dumps({"seed": options.seed} | campaign(work, options.kills, took_s, random.Random(options.seed)))
        )
    except WrongError as error:
        sys.exit(f"FAILED: {error}")


def campaign(work: Path, num_kills: int, took_s: float, rng: random.Random) -> dict[str, Any]:
    """Kill runs until there have been that many kills, and finish the last one."""
    whole = content(work / "whole/run")
    kinds: Counter[str] = Counter()
    num_runs = num_partial = num_damaged = 0
    while sum(kinds.values()) < num_kills:
        folder = work / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        while True:
            enough = sum(kinds.values()) >= num_kills
            kind = "none" if enough else rng.choice(("instant", "step", "write", "write"))
            if not killed(folder, kind, took_s, rng):
                break
            kinds[kind] += 1
            num_partial += bool(list(folder.rglob("*.partial")))
            if sum(kinds.values()) % KILLS_PER_DAMAGE == 0:
                num_damaged += damage_newest(folder, rng)
        require_equal(content(folder / "run"), whole)
        num_runs += 1
        print(f"{sum(kinds.values())} kills, {num_runs} runs finished, byte-identical")
    return {"kills": dict(kinds), "runs": num_runs, "partial_files_left": num_partial, "damaged": num_damaged}


def killed(folder: Path, kind: str, took_s: float, rng: random.Random) -> bool:
    """Start the run, or resume it, and kill it; whether that came before its end."""
    process = start(folder)
    until = time.monotonic() + (rng.uniform(0, took_s) if kind == "instant" else 600)
    num_lines = lines(folder) + rng.randint(1, 8)
    while process.poll() is None and time.monotonic() < until:
        is_due = kind in ("step", "write") and lines(folder) >= num_lines
        if is_due and (kind == "step" or list(folder.glob("run/**/*.partial"))):
            break
        time.sleep(LOOK_EVERY_S)
    if kind == "step":
        time.sleep(rng.uniform(0, 0.03))
    process.kill()
    code = process.wait()
    if code > 0:
        raise WrongError(f"the run failed with exit code {code}; see {folder}/log")
    return code < 0


def damage_newest(folder: Path, rng: random.Random) -> bool:
    """Flip a bit of the newest checkpoint, or cut it short, where one before it is there to begin from."""
    found = sorted(folder.glob("run/checkpoints/step-*.safetensors"))
    if len(found) < 2 or json.loads((folder / "run/run.json").read_text())["finished"]:
        return False
    data = bytearray(found[-1].read_bytes())
    if rng.random() < 0.5:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    found[-1].write_bytes(data)
    return True


def start(folder: Path) -> subprocess.Popen[bytes]:
    """`trainer run`, the same command each time."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", *COMMAND], cwd=folder, env=environment, stdout=log, stderr=log
        )


def lines(folder: Path) -> int:
    """Lines of metrics.jsonl."""
    try:
        return (folder / "run/metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def content(run: Path) -> dict[str, Any]:
    """Every file of a run as bytes; of metrics without what depends on the clock, of checkpoints the newest."""
    files: dict[str, Any] = {
        str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()
    }
    # A kill between the last checkpoint and the removal of the oldest leaves one more.
    for name in sorted(name for name in files if name.startswith("checkpoints/"))[: -RECIPE["checkpoints"]["keep"]]:
        del files[name]
    measured = [json.loads(line) for line in files.pop("metrics.jsonl").splitlines()]
    files["metrics"] = [{key: value for key, value in line.items() if key not in TIMINGS} for line in measured]
    files["record"] = {key: value for key, value in json.loads(files.pop("run.json")).items() if key != "created"}
    del files["environment.json"]
    return files


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise `WrongError` naming the files that differ."""
    if differing := sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    ):
        raise WrongError(f"these differ from the run that was never killed: {', '.join(differing)}")


def write_store(path: Path) -> None:
    """Images, two captions each, and the teacher's logits of the images."""
    rng = np.random.default_rng(0)
    samples = range(len(SPLITS))
    captions = [(sample, k) for sample in samples for k in range(2)]
    manifest = Manifest(
        dataset="kills",
        protocol="kills",
        items={
            "image": items_table({"id": [f"image-{s}" for s in samples], "split": SPLITS}),
            "text": items_table(
                {
                    "id": [f"text-{s}-{k}" for s, k in captions],
                    "text": [f"caption {k} of {s}" for s, k in captions],
                    "language": ["en"] * len(captions),
                    "split": [SPLITS[s] for s, _ in captions],
                }
            ),
        },
        pairs=dict([pairs_table("image", "text", [(s, row) for row, (s, _) in enumerate(captions)])]),
        num_classes=0,
    )
    store = TargetStore.create(path, manifest)
    hidden = rng.normal(size=(len(SPLITS), 6))
    for modality, name, owners in (
        ("image", "patches", np.arange(len(SPLITS))),
        ("text", "tokens", np.repeat(np.arange(len(SPLITS)), 2)),
    ):
        arrays = {name: (hidden @ rng.normal(size=(6, 5 * 24)))[owners].reshape(-1, 5, 24).astype(np.float32)}
        fields = [Field(name=name, shape=(5, 24), encoding=Float32())]
        if modality == "image":
            arrays["logits"] = (hidden @ rng.normal(size=(6, 10))).astype(np.float32)
            fields.append(Field(name="logits", shape=(10,), encoding=Float32()))
        fieldset = FieldSet(
            name="drawn",
            modality=modality,
            fields=tuple(fields),
            batch_size=8,
            rows_per_shard=64,
            provenance={"recipe": {"model": "drawn"}},
        )
        store.add(fieldset)
        for shard in range(store.num_shards(fieldset.key)):
            rows = store.shard_rows(fieldset.key, shard)
            store.write_shard(fieldset.key, shard, {key: a[rows.start : rows.stop] for key, a in arrays.items()})


if __name__ == "__main__":
    main()
