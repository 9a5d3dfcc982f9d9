"""Train students on Flickr8k and evaluate them on 1,000 photographs and their 5,000 captions.

    python benchmarks/flickr8k.py [--work DIR] [--recipes infonce shre] [--seeds 0 1 2]

Runs the three commands as a user would, into a folder that does not exist yet. Reads photographs and weights from
$PRECEPT_REAL_DATA (default ../shared/data). The official test photographs are not part of that data, so the 1,000
are the validation photographs and as many of the training ones as are missing, drawn by a seed; 250 others choose
the best epoch. None of them is trained on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

NUM_TEST, NUM_VAL = 1000, 250
TEACHER = {
    "model": "mobilenetv2_100",
    "model_args.pad_type": "same",
    "preprocessing.mean": "[0.5, 0.5, 0.5]",
    "preprocessing.std": "[0.5, 0.5, 0.5]",
}


def main() -> None:
    """Re-split, precompute, train, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-flickr8k"))
    parser.add_argument("--recipes", nargs="+", default=["infonce", "shre"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    data = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).resolve()
    checkpoint = data / "weights/mobilenetv2_100_in1k.fp16.safetensors"
    if not checkpoint.is_file():
        sys.exit(f"skipped: no {checkpoint}; set PRECEPT_REAL_DATA to a folder with flickr8k/ and weights/")
    if options.work.exists():
        sys.exit(f"{options.work} exists: what is there would be continued, not timed; give another --work")
    root, store = options.work / "data", options.work / "flickr8k.zarr"
    resplit(data / "flickr8k", root)
    settings = [f"--set=encoders.image.teacher.{key}={value}" for key, value in TEACHER.items()]
    settings.append(f"--set=encoders.image.teacher.checkpoint={checkpoint}")
    precompute_s = run(
        "pipeline", "precompute", "--dataset=flickr8k", f"--data-root={root}", f"--store={store}", *settings
    )
    results: dict[str, Any] = {"precompute_s": precompute_s}
    for recipe in options.recipes:
        results[recipe] = [train(recipe, seed, store, options.work) for seed in options.seeds]
    print(table(results, options.recipes))
    print(json.dumps(results))


def resplit(source: Path, root: Path) -> None:
    """Write the captions with the splits of this benchmark into `root`, beside a copy of the photographs."""
    root.mkdir(parents=True, exist_ok=True)
    tree = json.loads((source / "dataset_flickr8k.json").read_text())
    entries = [entry for entry in tree["images"] if entry["split"] != "test"]
    held_out = [entry for entry in entries if entry["split"] == "val"]
    training = [entry for entry in entries if entry["split"] != "val"]
    drawn = [training[place] for place in np.random.default_rng(0).permutation(len(training))]
    num_drawn = NUM_TEST - len(held_out)
    held_out += drawn[:num_drawn]
    rest = drawn[num_drawn:]
    for split, part in (("test", held_out), ("val", rest[:NUM_VAL]), ("train", rest[NUM_VAL:])):
        for entry in part:
            entry["split"] = split
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": entries}))
    # A link would lead out of the data root.
    shutil.copytree(source / "images", root / "images", dirs_exist_ok=True)


def train(recipe: str, seed: int, store: Path, work: Path) -> dict[str, Any]:
    """Train and evaluate one student; what it scored and how long training took."""
    path = work / f"{recipe}-{seed}"
    elapsed_s = run(
        "trainer",
        "run",
        f"--config={recipe}",
        f"--store={store}",
        f"--run={path}",
        f"--set=seed={seed}",
    )
    run("eval", "retrieval", f"--run={path}", "--index")
    report = json.loads((path / "reports/retrieval-flickr8k-test.json").read_text())
    return {"seed": seed, "train_s": elapsed_s, "directions": report["directions"], "random": report["random"]}


def run(program: str, *arguments: str) -> float:
    """Run one of the programs; how long it took, in seconds."""
    print("$", program, *arguments, flush=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", program, *arguments], check=True)
    return round(time.monotonic() - started, 1)


def table(results: dict[str, Any], recipes: list[str]) -> str:
    """Mean and sample standard deviation over the seeds, as Markdown."""
    figures = ("R@1", "R@5", "R@10", "mean_rank", "median_rank")
    lines = [f"| recipe | direction | {' | '.join(figures)} | training, s |", "|---|---|" + "---:|" * 6]
    for recipe in recipes:
        for direction in ("text-to-image", "image-to-text"):
            columns = [[one["directions"][direction][figure] for one in results[recipe]] for figure in figures]
            columns.append([one["train_s"] for one in results[recipe]])
            cells = [f"{mean(c):.1f} ± {stdev(c) if len(c) > 1 else 0:.1f}" for c in columns]
            lines.append(f"| {recipe} | {direction} | {' | '.join(cells)} |")
    for direction, figure in results[recipes[0]][0]["random"].items():
        cells = [f"{figure[name]:.1f}" for name in figures]
        lines.append(f"| random | {direction} | {' | '.join(cells)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
