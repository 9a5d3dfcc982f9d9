"""How much of a bare loop's speed `pipeline precompute` keeps, with its store, checksums and quarantine.

    python benchmarks/precompute.py [--images 1536] [--rounds 5] [--batch-size 64] [--model mobilenetv2_100]

Three ways to put photographs through the same frozen teacher on this machine, in turn, each in its own process:

    bare    two threads decode, resize and crop with timm's own transform while the model runs; nothing is written
    local   `pipeline precompute --engine local`
    ray     `pipeline precompute --engine ray`

Photographs are those of Flickr8k under $PRECEPT_REAL_DATA (default ../shared/data), again and again if there are
too few; without it, noise of their size. The teacher has timm's architecture and random weights. Start-up lasts
until the first batch is through the teacher: imports, the model, the store, Ray. What follows, to the last byte on
the disk, is the steady state. The last line is JSON: `local_over_bare` and `ray_over_bare` are ratios of
throughputs in the steady state, medians over rounds, more is better; `..._with_startup` are of the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STARTED = time.perf_counter()
WAYS = ("bare", "local", "ray")
THREADS = 2
BATCHES_AHEAD = 3


def main() -> None:
    """Make the data once, then time the three in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-precompute"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        figures = bare(options) if options.way == "bare" else precept(options)
        print(json.dumps(figures))
        return
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    prepare(options)
    rounds = []
    for number in range(options.rounds):
        # Every round begins with another, so that none always follows the same.
        turn = {way: run(way) for way in (*WAYS[number % 3 :], *WAYS[: number % 3])}
        print(
            f"round {number}: " + ", ".join(f"{way} {turn[way]['steady']:.1f} images/s" for way in WAYS), flush=True
        )
        rounds.append(turn)
    shutil.rmtree(options.work)
    print(json.dumps(summary(rounds, options)))


def run(way: str) -> dict[str, float]:
    """One way, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        sys.exit(process.stderr[-4000:])
    figures: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return figures


def prepare(options: argparse.Namespace) -> None:
    """The list of photographs, and the teacher's weights."""
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    root = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")) / "flickr8k"
    files = sorted(str(file.relative_to(root)) for file in (root / "images").glob("*.jpg"))
    if not files:
        print(f"{root} has no photographs: noise instead", file=sys.stderr)
        root, files = options.work / "noise", []
        root.mkdir()
        for number in range(256):
            noise = np.random.default_rng(number).integers(0, 256, (28, 28, 3), np.uint8)
            files.append(f"{number}.jpg")
            Image.fromarray(noise).resize((224, 224)).save(root / files[-1])
    torch.manual_seed(0)
    model = timm.create_model(options.model, pretrained=False)
    save_file(model.state_dict(), options.work / "teacher.safetensors")
    listed = [files[number % len(files)] for number in range(options.images)]
    (options.work / "photographs.json").write_text(json.dumps({"root": str(root.resolve()), "files": listed}))


def photographs(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """The folder, and files in it."""
    tree = json.loads((options.work / "photographs.json").read_text())
    return Path(tree["root"]), tree["files"]


def figures(first: float, num_first: int, num_images: int) -> dict[str, float]:
    """Images a second after the first batch, and of everything, and seconds of the start."""
    now = time.perf_counter()
    return {
        "steady": (num_images - num_first) / (now - first),
        "whole": num_images / (now - STARTED),
        "startup_s": first - STARTED,
    }


def bare(options: argparse.Namespace) -> dict[str, float]:
    """What one would write by hand: a pool that decodes some batches ahead, and the model.

    The batch is normalised as a whole: the tensor part of timm's transform, in two threads beside the model, would
    take half of the machine away from it.
    """
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    root, files = photographs(options)
    model = timm.create_model(options.model, pretrained=False).eval()
    model.load_state_dict(load_file(options.work / "teacher.safetensors"))
    data = timm.data.resolve_data_config({}, model=model)
    resize, crop, *_ = timm.data.create_transform(**data).transforms
    mean, std = (torch.tensor(data[name]).view(1, 3, 1, 1) for name in ("mean", "std"))

    def decode(file: str) -> np.ndarray:
        with Image.open(root / file) as image:
            return np.asarray(crop(resize(image.convert("RGB"))))

    first, num_first = 0.0, 0
    ahead: deque[list[object]] = deque()
    with ThreadPoolExecutor(THREADS) as pool, torch.inference_mode():
        batches = [files[n : n + options.batch_size] for n in range(0, len(files), options.batch_size)]
        for batch in [*batches, *[[]] * BATCHES_AHEAD]:
            ahead.append([pool.submit(decode, file) for file in batch])
            if len(ahead) > BATCHES_AHEAD:
                stacked = np.stack([future.result() for future in ahead.popleft()])
                images = (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255 - mean) / std
                features = model.forward_features(images)
                model.forward_head(features).numpy()
                if not first:
                    first, num_first = time.perf_counter(), len(images)
    return figures(first, num_first, len(files))


def precept(options: argparse.Namespace) -> dict[str, float]:
    """The same by the pipeline, whose store lies in the work folder."""
    from contract.manifest import Manifest, items_table
    from contract.store import TargetStore
    from encoders import TimmImage
    from pipeline import actors, plan
    from pipeline.precompute import Here
    from pipeline.settings import Encoders, Gate, Precompute, Workers

    root, files = photographs(options)
    ids = [f"{number:06d}" for number in range(len(files))]
    items = items_table({"id": ids, "file": files, "split": ["train"] * len(files)})
    manifest = Manifest(dataset="photographs", protocol="none", items={"image": items}, media_root=str(root))
    teacher = TimmImage(
        model=options.model,
        checkpoint=str((options.work / "teacher.safetensors").resolve()),
        batch_size=options.batch_size,
    )
    workers = Workers(decode_threads=THREADS)
    settings = Precompute(encoders=Encoders(image={"teacher": teacher}), gate=Gate(num_samples=0), workers=workers)
    path = options.work / f"{options.way}.zarr"
    shutil.rmtree(path, ignore_errors=True)
    (task,) = plan.make(settings, manifest, path, command="benchmark")
    store = TargetStore.create(path, manifest)
    store.add(task.fieldset)
    first, num_first = 0.0, 0

    def compute(crew: Here) -> dict[str, float]:
        nonlocal first, num_first
        for progress in crew.compute(task):
            if not first:
                first, num_first = time.perf_counter(), progress.num_rows
        return figures(first, num_first, len(files))

    if options.way == "local":
        found = compute(Here(store.path, workers))
    else:
        with actors.hired(store, [task], workers, None, print) as crew:
            found = compute(crew)
    assert store.complete(task.fieldset.key)
    return found


def summary(rounds: list[dict[str, dict[str, float]]], options: argparse.Namespace) -> dict[str, object]:
    """Ratios of throughputs, medians and ranges, and what was timed on what."""
    result: dict[str, object] = {}
    for name, figure in (("", "steady"), ("_with_startup", "whole")):
        for way in WAYS[1:]:
            ratios = [turn[way][figure] / turn["bare"][figure] for turn in rounds]
            result[f"{way}_over_bare{name}"] = round(statistics.median(ratios), 3)
            result[f"{way}_over_bare{name}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    for figure in ("steady", "startup_s"):
        result[figure] = {way: round(statistics.median(turn[way][figure] for turn in rounds), 2) for way in WAYS}
    about = {"images": options.images, "batch_size": options.batch_size, "model": options.model}
    return result | about | {"rounds": len(rounds), "cores": os.cpu_count(), "machine": platform.machine()}


if __name__ == "__main__":
    main()
