"""A fault campaign against the store: writers killed at random instants, files altered at random places.

    python benchmarks/soak.py [--kills 300] [--pipeline-kills 24] [--faults 1000] [--seed 0] [--work DIR]

Kills: a process makes a store (manifest, FieldSets with constants, shards of every encoding, two views) and gets
SIGKILL at a random instant; whatever it left is opened, every committed row compared with the truth, and the same
job started again, until it ends. The finished store must be, byte for byte, the one of a job that was never killed.
The same is done to `pipeline precompute` on a small set of scenes.

Faults: in a finished store one file, drawn at random, gets one bit flipped, is cut short, emptied or deleted. The
fault must be found when the store is opened, when rows are read with their checksums, or by `verify`; no value that
is read may differ from the truth; and repair must bring every byte back. The last line is JSON; any failure ends
the campaign with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from contract import kept
from contract.encodings import BFloat16, Float8, Float16, Float32, Int8, Int32, Lookup, Pixels, TopK
from contract.errors import StoreError
from contract.manifest import Manifest, items_table
from contract.schema import Field, FieldSet
from contract.storage import storage
from contract.store import Quarantined, TargetStore

NUM_ROWS = 700
FIELDS = (
    Field(name="patches", shape=(6, 300), encoding=Float16()),
    Field(name="small", shape=(16,), encoding=Float32()),
    Field(name="bits", shape=(40,), encoding=BFloat16()),
    Field(name="eighth", shape=(40,), encoding=Float8()),
    Field(name="scaled", shape=(4, 24), encoding=Int8()),
    Field(name="logits", shape=(50,), encoding=TopK(k=8), about={"temperature": 1.0}),
    Field(name="tokens", shape=(5, 16), encoding=Lookup()),
    Field(name="view", shape=(4, 12), encoding=Pixels(height=8, width=8)),
    Field(name="length", shape=(), encoding=Int32()),
)
FIELDSETS = tuple(
    FieldSet(
        name=name,
        modality="image",
        fields=FIELDS,
        batch_size=64,
        rows_per_shard=128,
        num_views=num_views,
        provenance={"recipe": {"model": name}},
    )
    for name, num_views in (("plain", 0), ("views", 1))
)


class WrongError(Exception):
    """Something that must never happen."""


def main() -> None:
    """Run the campaigns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--pipeline-kills", type=int, default=24)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    rng = random.Random(options.seed)
    write(options.work / "whole.zarr")
    whole = content(options.work / "whole.zarr")
    results: dict[str, Any] = {"seed": options.seed, "files": len(whole), "bytes": sum(map(len, whole.values()))}
    try:
        results["kills"] = kills(options.work, whole, options.kills, rng)
        results["pipeline_kills"] = pipeline_kills(options.work, options.pipeline_kills, rng)
        results["faults"] = faults(options.work / "whole.zarr", whole, options.faults, rng)
    except WrongError as error:
        sys.exit(f"FAILED: {error}")
    print(json.dumps(results))


def write(path: Path) -> None:
    """The job: make the store, or finish it."""
    store = TargetStore.create(path, manifest())
    for fieldset in FIELDSETS:
        store.add(fieldset, CONSTANTS)
        for shard in store.missing(fieldset.key):
            write_shard(store, fieldset, shard)


def write_shard(store: TargetStore, fieldset: FieldSet, shard: int) -> None:
    """One shard, with an input that could not be decoded in every third."""
    rows = store.shard_rows(fieldset.key, shard)
    bad = [Quarantined(row=rows[0], id=str(rows[0]), file="f", reason="broken")] if shard % 3 == 0 else []
    values = {name: array[rows.start : rows.stop] for name, array in VALUES[fieldset.name].items()}
    store.write_shard(fieldset.key, shard, values, bad, {"patches": {"relative_rmse": 0.001}})


def kills(work: Path, whole: dict[str, bytes], num_kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill the job `num_kills` times; how often, how many stores were finished, and where the kills fell."""
    done, stores, where = 0, 0, Counter[str]()
    started = time.monotonic()
    write(work / "timed.zarr")
    full_s = time.monotonic() - started
    while done < num_kills:
        path = work / "killed.zarr"
        shutil.rmtree(path, ignore_errors=True)
        while not killed(lambda path=path: write(path), rng.uniform(0, full_s)):
            done += 1
            where[require_right(path)] += 1
        stores += 1
        require_equal(content(path), whole, path)
    print(f"{done} kills, {stores} stores finished byte-identical; found after a kill: {dict(where)}")
    return {"kills": done, "stores": stores, "found_after": dict(where)}


def killed(job: Callable[[], None], after_s: float) -> bool:
    """Run the job in a process that is killed after so many seconds; whether it had ended before."""
    child = os.fork()
    if child == 0:
        try:
            job()
        except BaseException as error:
            print(f"the job failed: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise WrongError("a job that was started again failed")
    return os.WIFEXITED(status)


def require_right(path: Path) -> str:
    """Compare everything that counts in a store that a kill left behind; says how far it had come."""
    if not TargetStore.exists(path):
        return "no store yet"
    store = TargetStore.open(path)
    committed = 0
    for key in store.fieldsets:
        missing = set(store.missing(key))
        for shard in set(range(store.num_shards(key))) - missing:
            committed += 1
            require_values(store, key, np.array(store.shard_rows(key, shard)))
    return "some shards" if committed else "no shard yet"


def require_values(store: TargetStore, key: str, rows: np.ndarray[Any, Any]) -> None:
    """Every field of these rows, each view, against the truth; a `StoreError` is not a wrong value."""
    fieldset = store.fieldsets[key]
    truth = STORED[fieldset.name]
    constants = store.constants(key)
    if any(not np.array_equal(constants[name], array) for name, array in CONSTANTS.items()):
        raise WrongError(f"{key}: other constants")
    for field in fieldset.fields:
        for view in range(fieldset.views_per_row):
            flat = rows * fieldset.views_per_row + view
            for name, array in store.read(f"{key}/{field.name}", rows, views=view, check=True).items():
                if not np.array_equal(array, truth[name][flat]):
                    raise WrongError(f"{key}/{name}: a wrong value was read")


def pipeline_kills(work: Path, num_kills: int, rng: random.Random) -> dict[str, int]:
    """The same for the whole program, on a small set of scenes."""
    from contract import config

    tree = config.read_tree(config.find("data_manifests", "scenes"))
    tree["source"] |= {"num_train": 2400, "num_val": 60, "num_test": 60}
    (work / "scenes.yaml").write_text(json.dumps(tree))
    encoders = config.read_tree(config.find("configs/pipeline", "scenes"))
    encoders["encoders"]["image"]["teacher"]["encodings"] = {
        "patch_embeddings": {"kind": "int8"},
        "logits": {"kind": "topk", "k": 5},
    }
    encoders["encoders"].pop("text")
    (work / "encoders.yaml").write_text(json.dumps(encoders))

    arguments = ["--dataset=../scenes.yaml", "--config=../encoders.yaml", "--data-root=../scenes", "--views=1"]
    command = [sys.executable, "-m", "pipeline", "precompute", *arguments, "--store=scenes.zarr", "--engine=local"]

    def begun(name: str) -> subprocess.Popen[bytes]:
        # In a folder of its own, since the command line, which the store keeps, must be the same.
        (work / name).mkdir(exist_ok=True)
        return subprocess.Popen(command, cwd=work / name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for name in ("whole", "timed"):
        started = time.monotonic()
        if begun(name).wait():
            raise WrongError("pipeline precompute failed")
        full_s = time.monotonic() - started
    whole = content(work / "whole/scenes.zarr")
    done, stores = 0, 0
    while done < num_kills:
        shutil.rmtree(work / "killed", ignore_errors=True)
        while True:
            process = begun("killed")
            try:
                if process.wait(timeout=rng.uniform(full_s / 4, full_s)):
                    raise WrongError("pipeline precompute failed when it was started again")
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
        stores += 1
        require_equal(content(work / "killed/scenes.zarr"), whole, work / "killed/scenes.zarr")
    print(f"{done} kills of pipeline precompute, {stores} stores finished byte-identical")
    return {"kills": done, "stores": stores}


def faults(path: Path, whole: dict[str, bytes], num_faults: int, rng: random.Random) -> dict[str, Any]:
    """Alter one file at a time; where each fault was found."""
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    names = sorted(whole)
    for _ in range(num_faults):
        # Half of the faults fall on a file whatever its size, half on a byte wherever it lies.
        weights = [len(whole[name]) for name in names] if rng.random() < 0.5 else None
        (name,) = rng.choices(names, weights)
        kind = rng.choice(
            ("flip", "flip", "flip", "flip", "flip", "flip", "truncate", "truncate", "empty", "delete")
        )
        damage(path / name, whole[name], kind, rng)
        kinds[f"{kind} {kind_of(name)}"] += 1
        found[where_found(path, f"{kind} {name}")] += 1
        repair(path)
        require_equal(content(path), whole, path)
    print(f"{num_faults} faults, all found and mended; found: {dict(found)}")
    print(json.dumps(dict(sorted(kinds.items())), indent=1))
    return {"faults": num_faults, "found": dict(found), "kinds": dict(sorted(kinds.items()))}


def damage(path: Path, content: bytes, kind: str, rng: random.Random) -> None:
    """One fault."""
    if kind == "delete":
        path.unlink()
    elif kind == "flip":
        place = rng.randrange(len(content))
        flipped = content[place] ^ (1 << rng.randrange(8))
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    else:
        path.write_bytes(content[: 0 if kind == "empty" else rng.randrange(len(content))])


def where_found(path: Path, what: str) -> str:
    """Where the fault shows first: at open, at a checked read, or in `verify`."""
    try:
        store = TargetStore.open(path)
        for fieldset in FIELDSETS:
            if fieldset.key not in store.fieldsets:
                return "at open"  # a trainer that asks for its fields is told that they are not there
        store.require_intact_manifest()
        store.require_complete(store.fieldsets)
    except StoreError:
        return "at open"
    try:
        for key in store.fieldsets:
            require_values(store, key, np.arange(NUM_ROWS))
    except StoreError:
        return "at a checked read"
    if list(kept.faults(store.files)) or any(bad for _, _, bad in store.verify()):
        return "by verify; what was read was right"
    raise WrongError(f"not found: {what}")


def repair(path: Path) -> None:
    """What `pipeline repair` does, with the truth for an encoder."""
    _, lost = kept.mend(storage(path))
    if lost:
        raise WrongError(f"lost: {lost}")
    store = TargetStore.open(path)
    for key, shard, bad in list(store.verify()):
        if bad:
            store.discard(key, shard)
    for fieldset in FIELDSETS:
        for shard in store.missing(fieldset.key):
            write_shard(store, fieldset, shard)


def content(path: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.endswith(".partial")
    }


def require_equal(found: dict[str, bytes], expected: dict[str, bytes], path: Path) -> None:
    """The same files with the same bytes."""
    different = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    if different:
        raise WrongError(f"{path}: other bytes in {sorted(different)[:5]}")


def kind_of(name: str) -> str:
    """What a file of a store is."""
    marks = {"copies/": "copy", "commits/": "commit", "manifest/": "manifest", "zarr.json": "zarr.json"}
    for mark, kind in marks.items():
        if mark in name:
            return kind
    return "constant" if any(constant in name for constant in CONSTANTS) else "shard"


def manifest() -> Manifest:
    """Rows with ids."""
    items = items_table({"id": [f"item-{row}" for row in range(NUM_ROWS)], "split": ["train"] * NUM_ROWS})
    return Manifest(dataset="soak", protocol="soak", items={"image": items})


def truth() -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Constants; by FieldSet what each encoding takes; by FieldSet the stored arrays, [rows x views, ...]."""
    rng = np.random.default_rng(0)
    constants = {
        "scaled.scale": np.full(24, 0.03, np.float32),
        "tokens.table": rng.normal(size=(90, 16)).astype(np.float32),
        "view.weight": rng.normal(size=(12, 4, 4, 3)).astype(np.float32),
        "view.bias": rng.normal(size=12).astype(np.float32),
    }
    values: dict[str, dict[str, Any]] = {}
    stored: dict[str, dict[str, Any]] = {}
    for fieldset in FIELDSETS:
        values[fieldset.name], stored[fieldset.name] = {}, {}
        views = (fieldset.views_per_row,) if fieldset.num_views else ()
        for field in FIELDS:
            dtype, shape = field.encoding.input(field.shape)
            drawn = rng.integers(0, 90, (NUM_ROWS, *views, *shape)) if dtype != "float32" else None
            array = rng.normal(size=(NUM_ROWS, *views, *shape)) if drawn is None else drawn
            values[fieldset.name][field.name] = array.astype(dtype)
            stored[fieldset.name] |= field.encode(array.astype(dtype).reshape(-1, *shape), constants)
    return constants, values, stored


CONSTANTS, VALUES, STORED = truth()

if __name__ == "__main__":
    main()
