"""What a student's step costs with its batches in memory, from the store, and with the frozen models in the loop.

    python benchmarks/trainer.py [--images 768] [--batch-size 256] [--rounds 7] [--work DIR]
                                 [--teachers mobilenetv2_100 resnet50 vit_small_patch16_224]

For each teacher, photographs and captions of Flickr8k under $PRECEPT_REAL_DATA (default ../shared/data; noise
without it) are precomputed once by the pipeline's local engine, timed; then three trainings of the same recipe
(configs/trainer/shre.yaml) on the same batches take turns, some steps of each in a round:

    memory      the batches lie decoded where the student is; nothing but the step
    store       the trainer's loader, reading the store ahead; checksums in the first epoch and every tenth
    loop        what one does without a store: two threads decode and crop ahead, the teacher and the text encoder
                run, then the student's step

`store_over_memory` is the median over rounds of all teachers' seconds a step; `teacher_in_loop_over_store` a ratio
for each teacher; `break_even_epoch` the first epoch after which precompute and the epochs from the store together
took less time than the epochs with the teacher in the loop. The teachers have timm's architectures and random
weights, which changes no speed. On a GPU the share of its peak that the student's arithmetic reaches is added
(`mfu`). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# This file has the name of a package that it imports, and its folder would be looked in first.
sys.path[:1] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np
import torch
from peers.timing import alternate, ratios, spread

from contract import config
from contract.manifest import Manifest, items_table, pairs_table
from contract.store import TargetStore
from contract.views import Item
from encoders import Encoder, TimmImage
from pipeline import plan
from pipeline.precompute import Here
from pipeline.settings import Encoders, Gate, Precompute, Workers
from trainer.batch import Batch, Tokens
from trainer.device import Device
from trainer.loader import Loader
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.state import State
from trainer.step import take_step
from trainer.streams import Streams

THREADS = 2
BATCHES_AHEAD = 2
CAPTIONS = 5
# Steps of one round: few of those that are slow.
STEPS = {"memory": 4, "store": 4, "loop": 1}
# Dense bfloat16 products, in operations a second, by what the device calls itself.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "T4": 65e12}


def main() -> None:
    """Each teacher in its turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--teachers", nargs="+", default=["mobilenetv2_100", "resnet50", "vit_small_patch16_224"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-trainer"))
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    manifest = photographs(options.images, options.work)
    results = {name: measure(name, manifest, options) for name in options.teachers}
    shutil.rmtree(options.work)
    over = [ratio for found in results.values() for ratio in found.pop("ratios")]
    print(
        json.dumps(
            {
                "store_over_memory": spread(over)["median"],
                "store_over_memory_quartiles": spread(over),
                "teacher_in_loop_over_store": {
                    name: found["loop_over_store"]["median"] for name, found in results.items()
                },
                "break_even_epoch": {name: found["break_even_epoch"] for name, found in results.items()},
                "teachers": results,
                "about": {
                    "images": options.images,
                    "batch_size": options.batch_size,
                    "rounds": options.rounds,
                    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
                    "cores": os.cpu_count(),
                    "torch": torch.__version__,
                },
            }
        )
    )


def measure(model: str, manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """One teacher: its store, then the three in turn."""
    encoders = frozen(model, options.work)
    store, precompute_s = precomputed(model, manifest, encoders, options.work)
    recipe = config.load(ROOT / "configs/trainer/shre.yaml", Recipe, [f"batch_size={options.batch_size}"])
    device = Device.choose(recipe.precision)
    device.prepare()
    streams = resolve(recipe, [store])
    ways = {
        "memory": in_memory(streams, device),
        "store": iter(Loader(streams, 0, 10**9, device.name)),
        "loop": in_loop(streams, manifest, encoders, device),
    }
    states = {way: State(recipe, streams, device) for way in ways}

    def steps(way: str) -> Callable[[object], object]:
        def take(_: object) -> None:
            for _ in range(STEPS[way]):
                take_step(states[way], recipe, ways[way], 1e-4)
            if device.is_cuda:
                torch.cuda.synchronize()

        return take

    actions = {way: steps(way) for way in ways}
    for way in ways:
        actions[way](None)
    found = alternate(actions, lambda: None, options.rounds)
    ways["store"].close()  # type: ignore[attr-defined]  # a generator, whose threads end with it
    seconds = {way: [taken / STEPS[way] for taken in values] for way, values in found.items()}
    medians = {way: spread(values, 6)["median"] for way, values in seconds.items()}
    per_epoch = streams.steps_per_epoch
    saved_s = per_epoch * (medians["loop"] - medians["store"])
    result = {
        "ratios": ratios(seconds["store"], seconds["memory"]),
        "store_over_memory": spread(ratios(seconds["store"], seconds["memory"])),
        "loop_over_store": spread(ratios(seconds["loop"], seconds["store"]), 1),
        "precompute_s": round(precompute_s, 1),
        "break_even_epoch": math.ceil(precompute_s / saved_s) if saved_s > 0 else None,
        "epoch_s": {way: round(per_epoch * value, 2) for way, value in medians.items()},
        "samples_per_s": {way: round(options.batch_size / value, 1) for way, value in medians.items()},
    }
    if device.is_cuda:
        result["mfu"] = utilisation(states["memory"], recipe, ways["memory"], medians["memory"])
    print(f"{model}: {json.dumps({key: value for key, value in result.items() if key != 'ratios'})}", flush=True)
    return result


def photographs(num_images: int, work: Path) -> Manifest:
    """Photographs with five captions each, all for training."""
    root = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).resolve() / "flickr8k"
    if (root / "dataset_flickr8k.json").is_file():
        entries = json.loads((root / "dataset_flickr8k.json").read_text())["images"]
        entries = [entry for entry in entries if (root / "images" / entry["filename"]).is_file()][:num_images]
        files = [f"images/{entry['filename']}" for entry in entries]
        captions = [[s["raw"] for s in entry["sentences"][:CAPTIONS]] for entry in entries]
    else:
        from PIL import Image

        print(f"{root} has no photographs: noise instead", file=sys.stderr)
        root = (work / "noise").resolve()
        root.mkdir()
        files, captions = [f"{number}.jpg" for number in range(num_images)], []
        for number, file in enumerate(files):
            noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(noise).resize((500, 375)).save(root / file)
            captions.append([f"noise of number {number}, told for the {n}th time" for n in range(CAPTIONS)])
    ids = [f"{number:06d}" for number in range(len(files))]
    texts = [(image, text) for image, told in enumerate(captions) for text in told]
    items = {
        "image": items_table({"id": ids, "file": files, "split": ["train"] * len(files)}),
        "text": items_table(
            {
                "id": [f"{number:07d}" for number in range(len(texts))],
                "text": [text for _, text in texts],
                "language": ["en"] * len(texts),
                "split": ["train"] * len(texts),
            }
        ),
    }
    pairs = dict([pairs_table("image", "text", [(image, row) for row, (image, _) in enumerate(texts)])])
    return Manifest(dataset="photographs", protocol="none", items=items, pairs=pairs, media_root=str(root))


def frozen(model: str, work: Path) -> dict[str, Encoder]:
    """The teacher, with random weights on disk, and the text encoder of configs/pipeline/flickr8k.yaml."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = (work / f"{model}.safetensors").resolve()
    save_file(timm.create_model(model, pretrained=False).state_dict(), weights)
    text = config.load(ROOT / "configs/pipeline/flickr8k.yaml", Precompute).encoders.text["tokens"]
    return {"image": TimmImage(model=model, checkpoint=str(weights), batch_size=64), "text": text}


def precomputed(
    model: str, manifest: Manifest, encoders: dict[str, Encoder], work: Path
) -> tuple[TargetStore, float]:
    """The store, and the seconds it took to fill, loading of models included."""
    workers = Workers(decode_threads=THREADS)
    of = Encoders(image={"teacher": encoders["image"]}, text={"tokens": encoders["text"]})  # type: ignore[dict-item]
    settings = Precompute(encoders=of, gate=Gate(num_samples=0), workers=workers)
    path = work / f"{model}.zarr"
    started = time.perf_counter()
    tasks = plan.make(settings, manifest, path, command="benchmark")
    store = TargetStore.create(path, manifest)
    for task in tasks:
        store.add(task.fieldset)
        for _ in Here(store.path, workers).compute(task):
            pass
    return TargetStore.open(path), time.perf_counter() - started


def in_memory(streams: Streams, device: Device) -> Iterator[Batch]:
    """The first batches, decoded where the student is, again and again."""
    return cycle([streams.read(step).to(device.name) for step in range(8)])


def in_loop(streams: Streams, manifest: Manifest, encoders: dict[str, Encoder], device: Device) -> Iterator[Batch]:
    """The batches that the store would give, made by the frozen models each time."""
    models = {modality: encoder.build(device.name) for modality, encoder in encoders.items()}
    views = {modality: encoder.view() for modality, encoder in encoders.items()}
    items = {modality: items_of(manifest, modality) for modality in encoders}

    def load(modality: str, row: int) -> Any:
        return views[modality].load(items[modality](row))

    def started(pool: ThreadPoolExecutor, step: int) -> tuple[tuple[str, str], dict[str, list[Future[Any]]]]:
        stream, drawn = streams.draw(step)
        return stream.pair, {
            m: [pool.submit(load, m, int(row)) for row in rows] for m, rows in drawn.shown.rows.items()
        }

    with ThreadPoolExecutor(THREADS) as pool:
        ahead = deque(started(pool, step) for step in range(BATCHES_AHEAD))
        step = BATCHES_AHEAD
        while True:
            pair, futures = ahead.popleft()
            ahead.append(started(pool, step))
            step += 1
            outputs = {m: models[m]([future.result() for future in found]) for m, found in futures.items()}
            yield batch_of(pair, outputs, device)


def items_of(manifest: Manifest, modality: str) -> Callable[[int], Item]:
    """The item of a row."""
    ids, files, texts = (manifest.column(modality, name) for name in ("id", "file", "text"))
    root = Path(str(manifest.media_root))
    return lambda row: Item(id=ids[row], file=root / files[row], text=texts[row])


def batch_of(pair: tuple[str, str], outputs: dict[str, dict[str, Any]], device: Device) -> Batch:
    """What the frozen models said, as the student reads it: captions cut to the longest."""
    image, text = (
        {name: torch.from_numpy(np.asarray(values)).to(device.name) for name, values in outputs[m].items()}
        for m in ("image", "text")
    )
    length = text["length"].int()
    words = text["token_embeddings"][:, : int(length.max())]
    patches = image["patch_embeddings"]
    return Batch(
        pair=pair,
        inputs={"image": Tokens(patches, None), "text": Tokens(words, length)},
        targets={"logits": image["logits"]},
    )


def utilisation(state: State, recipe: Recipe, batches: Iterator[Batch], step_s: float) -> float | None:
    """The student's floating-point operations a second over the device's peak; None where that is not known."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        take_step(state, recipe, batches, 1e-4)
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAKS.items() if part in name.split()), None)
    return None if peak is None else round(counter.get_total_flops() / step_s / peak, 4)


if __name__ == "__main__":
    main()
