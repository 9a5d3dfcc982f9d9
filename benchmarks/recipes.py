"""Train recipes and their ablations from one store each, with several seeds, and evaluate them on splits test.

    python benchmarks/recipes.py [EXPERIMENT ...] [--work DIR] [--seeds 0 1 2] [--jobs 2] [--data2vec DIR]

Runs the commands as a user would. What is finished under --work is not done again: an experiment that was stopped
goes on. Prints a Markdown table for each experiment, mean and sample standard deviation over the seeds, and writes
WORK/EXPERIMENT.json. `training, s` is of runs that share the cores with others if there are several --jobs.

Flickr8k, CIFAR and weights are read from $PRECEPT_REAL_DATA (default ../shared/data); without them only the
experiments on scenes are at hand. The teachers of the d2v recipes lie under --data2vec, where
examples/train_data2vec_cifar.py DIR/cifar and examples/train_data2vec_scenes.py DIR/scenes have left them.

The official test photographs of Flickr8k are not part of that data, so 1,000 are the validation photographs and as
many of the training ones as are missing, drawn by a seed; 250 others choose the best epoch. CIFAR, of which 4,000
and 1,000 images are there, validates on a tenth of the training images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("PRECEPT_REAL_DATA", ROOT / "../shared/data")).resolve()
NUM_TEST, NUM_VAL = 1000, 250
MODALITIES = ("image", "text", "audio")
RETRIEVAL = ("R@1", "R@5", "R@10", "mean_rank", "median_rank")
CHECKPOINT = DATA / "weights/mobilenetv2_100_in1k.fp16.safetensors"
MOBILENETV2 = {
    "checkpoint": str(CHECKPOINT),
    "model": "mobilenetv2_100",
    "model_args.pad_type": "same",
    "preprocessing.mean": "[0.5, 0.5, 0.5]",
    "preprocessing.std": "[0.5, 0.5, 0.5]",
}


# Figures by row of a table, such as a direction.
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Variant:
    """A recipe, what follows its --set, and the variant with whose run of the same seed it begins."""

    recipe: str
    settings: Mapping[str, str] = field(default_factory=dict)
    warm_start: str | None = None


@dataclass(frozen=True)
class Experiment:
    """Variants of recipes that train on the same stores, and what is measured of each."""

    stores: Sequence[str]
    variants: Mapping[str, Variant]
    measures: Sequence[str] = ("retrieval",)
    languages: Sequence[str] = ("en",)
    modalities: Sequence[str] = ("image",)


def beside_untrained(recipe: str, settings: Mapping[str, str]) -> dict[str, Variant]:
    """A recipe, and the student that it begins with."""
    return {"untrained": Variant(recipe, {**settings, **UNTRAINED}), "trained": Variant(recipe, settings)}


def without(recipe: str, objective: str, settings: Mapping[str, str] | None = None) -> Variant:
    """A recipe with one of its objectives switched off."""
    return Variant(recipe, {f"objectives.{objective}.weight": "0", **(settings or {})})


PAIRS = ("infonce", "simclr_smooth", "siglip", "triplet_sum", "triplet_max", "barlow", "shre")
SYSTEMS = ("codis", "mct", "mct_tags", "xmc", "vx2text", "transformer_supervision")
SCRATCH = {"objectives.triplet.anneal_steps": "0"}
# No table reads what a matching head would rank again.
ONE = {"objectives.itm.top_k": "1"}
# Photographs without labels are tagged by the teacher's classes.
TAGS = {"targets": "{logits: logits}", "objectives.intra.tags": "target"}
ON_PHOTOGRAPHS = {"codis": ONE, "transformer_supervision": ONE, "mct_tags": TAGS}
# As a GPU does by itself; a processor with matrix units for it takes 0.6 of the time.
HALF = {"precision": "bfloat16"}
# The copy follows within the 220 steps that 20 epochs of scenes are; at 0.995 it would lag behind by 200 of them.
FOLLOWS = ONE | HALF | {"objectives.align.momentum": "0.9", "objectives.codebook.momentum": "0.9"}
M3P = yaml.safe_load((ROOT / "configs/trainer/m3p.yaml").read_text())["streams"]
# As wide as the teachers of CIFAR and of scenes, and half as deep.
SMALL = {
    "student.width": "192",
    "student.embedding_dim": "192",
    "student.num_heads": "3",
    "student.adapters.image.depth": "3",
    "epochs": "12",
}
UNTRAINED = {"optimizer.learning_rate": "1e-12", "epochs": "1"}
SMALLER = {"student.width": "128", "student.embedding_dim": "128", "student.num_heads": "4"}
AUDIO = SMALLER | {"student.adapters.audio.depth": "2", "epochs": "30"}

EXPERIMENTS = {
    "flickr8k": Experiment(
        ["flickr8k"],
        {
            **{name: Variant(name) for name in PAIRS},
            "triplet_max from scratch": Variant("triplet_max", SCRATCH),
            "triplet_max semi-hard": Variant("triplet_max", {**SCRATCH, "objectives.triplet.mining": "semi_hard"}),
            "triplet_max from sum": Variant("triplet_max", SCRATCH, warm_start="triplet_sum"),
        },
    ),
    "flickr8k-systems": Experiment(
        ["flickr8k"], {name: Variant(name, ON_PHOTOGRAPHS.get(name, {})) for name in SYSTEMS}
    ),
    "flickr8k-precept": Experiment(
        ["flickr8k-precept"],
        {
            "precept": Variant("precept"),
            "batches of 256": Variant(
                "precept", {"batch_size": "256", "epochs": "20", "optimizer.learning_rate": "1e-3"}
            ),
            "one view": Variant("precept", {"views": "evaluation"}),
            "no dropped channels": Variant(
                "precept", {f"student.adapters.{one}.input_dropout": "0.0" for one in ("image", "text")}
            ),
            "a second map": Variant("precept", {"student.projection": "linear"}),
        },
    ),
    "scenes-shre": Experiment(["scenes"], {"shre": Variant("shre"), "shre without kd": without("shre", "kd")}),
    "scenes-avid": Experiment(
        ["scenes"],
        {
            "avid": Variant("avid"),
            "avid, 20 epochs more": Variant("avid", {"epochs": "20"}, warm_start="avid"),
            "avid_cma": Variant("avid_cma", warm_start="avid"),
        },
        measures=("retrieval", "labels"),
        modalities=("image", "audio"),
    ),
    "scenes-mct": Experiment(
        ["scenes"],
        {
            "mct": Variant("mct"),
            "mct_tags": Variant("mct_tags"),
            "mct, no head": Variant("mct", {"objectives.inter.head_dim": "null"}),
            "mct_tags, no head": Variant("mct_tags", {"objectives.inter.head_dim": "null"}),
        },
    ),
    "scenes-codis": Experiment(
        ["scenes"],
        {"codis": Variant("codis", FOLLOWS), "codis without codebook": without("codis", "codebook", FOLLOWS)},
    ),
    "scenes-m3p": Experiment(
        ["scenes"],
        {
            "m3p": Variant("m3p", ONE | HALF),
            "m3p without code-switching": Variant("m3p", ONE | HALF | {"streams": json.dumps(M3P[:2])}),
        },
        languages=("en", "de", "es"),
    ),
    "scenes-xmc": Experiment(
        ["scenes"],
        {
            "xmc": Variant("xmc"),
            **{f"xmc without {name}": without("xmc", name) for name in ("sentence", "words", "generated")},
        },
    ),
    "scenes-vx2text": Experiment(
        ["scenes"],
        {
            "with sound": Variant("vx2text_sound", HALF),
            "without sound": Variant("vx2text_sound", HALF | {"objectives.caption.sound": "false"}),
        },
        measures=("retrieval", "captions"),
    ),
    "scenes-transformer_supervision": Experiment(
        ["scenes"], {"all": Variant("transformer_supervision", ONE | HALF)}
    ),
    "cifar-d2v_image": Experiment(
        ["cifar10-data2vec", "cifar100-data2vec"], beside_untrained("d2v_image", SMALL), measures=("labels",)
    ),
    "cifar-kd_image": Experiment(
        ["cifar10-mobilenetv2", "cifar100-mobilenetv2"], beside_untrained("kd_image", {}), measures=("labels",)
    ),
    "scenes-d2v_text": Experiment(
        ["scenes-data2vec"],
        beside_untrained("d2v_text", SMALLER | {"student.adapters.text.depth": "2", "epochs": "2"}),
        measures=("labels",),
        modalities=("text",),
    ),
    "scenes-d2v_audio": Experiment(
        ["scenes-data2vec"], beside_untrained("d2v_audio", AUDIO), measures=("labels",), modalities=("audio",)
    ),
    "scenes-d2v_audio_instance": Experiment(
        ["scenes-data2vec_instance"],
        {"trained": Variant("d2v_audio", AUDIO)},
        measures=("labels",),
        modalities=("audio",),
    ),
    "scenes-d2v_multimodal": Experiment(
        ["scenes-data2vec"],
        beside_untrained("d2v_multimodal", SMALLER | {"student.depth": "2", "epochs": "10"}),
        measures=("labels",),
        modalities=MODALITIES,
    ),
}


def main() -> None:
    """Stores, runs, tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="EXPERIMENT", help=f"default: all of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-recipes"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--data2vec", type=Path, metavar="DIR", default=Path("runs/data2vec"))
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(EXPERIMENTS))
    if unknown:
        sys.exit(f"no experiment {', '.join(unknown)}: there are {', '.join(EXPERIMENTS)}")
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in options.names or EXPERIMENTS:
        for store in EXPERIMENTS[name].stores:
            precompute(store, work, options.data2vec)
        with ThreadPoolExecutor(options.jobs) as pool:
            runs = {seed: pool.submit(trained, name, seed, work, options.jobs) for seed in options.seeds}
            try:
                results = {seed: run.result() for seed, run in runs.items()}
            finally:
                pool.shutdown(cancel_futures=True)
        (work / f"{name}.json").write_text(json.dumps(results, indent=1))
        print(
            f"\n{name}, seeds {', '.join(map(str, options.seeds))}\n\n{table(list(results.values()))}\n", flush=True
        )


def precompute(store: str, work: Path, data2vec: Path) -> None:
    """Make a store, named after its dataset and, where that is not the dataset's own, its teacher."""
    path = work / f"{store}.zarr"
    if path.exists():
        return
    dataset, _, teacher = store.partition("-")
    if dataset != "scenes" and not CHECKPOINT.is_file():
        sys.exit(f"skipped: no {CHECKPOINT}; set PRECEPT_REAL_DATA to a folder with {dataset}/ and weights/")
    arguments = [*of_dataset(dataset, work), *of_teacher(dataset, teacher, data2vec.resolve())]
    execute(1, "pipeline", "precompute", *arguments, f"--store={path}.partial", "--engine=local")
    Path(f"{path}.partial").rename(path)


def of_dataset(dataset: str, work: Path) -> list[str]:
    """What names it to the command; splits of its own are written under `work`."""
    if dataset == "scenes":
        return ["--dataset=scenes"]
    if dataset == "flickr8k":
        resplit(DATA / dataset, work / "photographs")
        return ["--dataset=flickr8k", f"--data-root={work / 'photographs'}"]
    manifest = yaml.safe_load((ROOT / f"data_manifests/{dataset}.yaml").read_text())
    manifest["source"]["num_val"] = 400
    (work / f"{dataset}.yaml").write_text(yaml.safe_dump(manifest))
    return [f"--dataset={work / dataset}.yaml", f"--data-root={DATA / dataset}"]


def of_teacher(dataset: str, teacher: str, data2vec: Path) -> list[str]:
    """What names the encoders to the command, with their settings."""
    settings: dict[str, dict[str, str]] = {"image.teacher": MOBILENETV2}
    arguments = []
    if teacher == "precept":
        settings = {f"image.teacher.members.{number}": MOBILENETV2 for number in (0, 1)}
        arguments = ["--config=precept", "--views=2"]
    elif dataset == "scenes" and not teacher:
        settings = {}
    elif dataset == "scenes":
        settings = {f"{one}.teacher": {"model": str(data2vec / "scenes" / one), "k": "3"} for one in MODALITIES}
        settings["audio.teacher"]["duration_s"] = "1"
        if teacher == "data2vec_instance":
            settings["audio.teacher"]["normalise"] = "instance"
        arguments = ["--config=data2vec"]
    elif teacher == "data2vec":
        take = "[patch_embeddings, targets, features]"
        model = str(data2vec / "cifar/model")
        settings = {"image.teacher": {"kind": "data2vec_image", "model": model, "k": "5", "take": take}}
    return arguments + [
        f"--set=encoders.{encoder}.{key}={value}"
        for encoder, values in settings.items()
        for key, value in values.items()
    ]


def resplit(source: Path, root: Path) -> None:
    """Write the captions with the splits of this benchmark into `root`, beside a copy of the photographs."""
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
    # A link would lead out of the data root.
    shutil.copytree(source / "images", root / "images", dirs_exist_ok=True)
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": entries}))


def trained(name: str, seed: int, work: Path, jobs: int) -> dict[str, Rows]:
    """Train and measure each variant of an experiment with one seed; its rows, by variant."""
    experiment = EXPERIMENTS[name]
    found: dict[str, Rows] = {}
    for label, variant in experiment.variants.items():
        run = folder(work / name, label, seed)
        settings = {**variant.settings, "seed": str(seed)}
        if variant.warm_start is not None:
            settings["warm_start"] = str(folder(work / name, variant.warm_start, seed))
        how = [f"--config={variant.recipe}", *(f"--set={key}={value}" for key, value in settings.items())]
        if (run / "run.json").exists():
            how = ["--resume"]
        stores = [f"--store={work / store}.zarr" for store in experiment.stores]
        started = time.monotonic()
        execute(jobs, "trainer", "run", *stores, f"--run={run}", *how)
        if not (run / "training_s").exists():
            (run / "training_s").write_text(f"{time.monotonic() - started:.0f}")
        found[label] = {}
        for measure in experiment.measures:
            for row, figures in MEASURES[measure](run, experiment, jobs).items():
                found[label].setdefault(row, {}).update(figures)
        for figures in found[label].values():
            figures["training, s"] = float((run / "training_s").read_text())
    return found


def folder(experiment: Path, label: str, seed: int) -> Path:
    """Of a run."""
    return experiment / f"{re.sub(r'[^a-z0-9_]+', '_', label)}-{seed}"


def retrieval(run: Path, experiment: Experiment, jobs: int) -> Rows:
    """A row for each direction and language."""
    rows: Rows = {}
    for language in experiment.languages:
        report = json.loads(execute(jobs, "eval", "retrieval", f"--run={run}", f"--language={language}", "--json"))
        for direction, figures in report["directions"].items():
            name = direction if len(experiment.languages) == 1 else f"{direction}, {language}"
            rows[name] = {figure: figures[figure] for figure in RETRIEVAL}
    return rows


def captions(run: Path, experiment: Experiment, jobs: int) -> Rows:
    """BLEU-4 and CIDEr of what is generated of split test, in a row of their own."""
    found = re.search(r"BLEU-4 ([\d.]+), CIDEr ([\d.]+)", execute(jobs, "trainer", "caption", f"--run={run}"))
    if found is None:
        raise RuntimeError(f"{run}: trainer caption printed no scores")
    return {"captions": {"BLEU-4": float(found[1]), "CIDEr": float(found[2])}}


def labels(run: Path, experiment: Experiment, jobs: int) -> Rows:
    """Student, teacher and chance on each store: neighbours, memory and queries both ways, and a linear probe."""
    rows: Rows = {}
    execute(jobs, "trainer", "embed", f"--run={run}", "--split=train", "--split=test")
    for store in experiment.stores:
        dataset, path = store.partition("-")[0], run.parents[1] / f"{store}.zarr"
        for modality in experiment.modalities:
            of = f"{dataset}, {modality}" if len(experiment.modalities) > 1 else dataset
            asked = [f"--run={run}", f"--dataset={dataset}", f"--modality={modality}"]
            teacher = f"{modality}/teacher/features"
            if (path / teacher).exists():
                asked += [f"--store={path}", f"--field={teacher}"]
            for bank, queries in (("train", "test"), ("test", "train")):
                splits = (f"--bank={bank}", f"--queries={queries}")
                for one in json.loads(execute(jobs, "eval", "neighbours", *asked, *splits, "--json"))["measured"]:
                    for k, share in one["k"].items():
                        column = f"{queries} in {bank}, top-{k}"
                        rows.setdefault(f"{of}, {whose(one)}", {})[column] = share["any"]
                        rows.setdefault(f"{of}, chance", {})[column] = share["chance_any"]
            for one in json.loads(execute(jobs, "eval", "probe", *asked, "--json"))["measured"]:
                rows[f"{of}, {whose(one)}"]["probe"] = one["accuracy"]
                rows[f"{of}, chance"]["probe"] = one["chance"]
    return rows


def whose(measured: Mapping[str, object]) -> str:
    """Embeddings of a run, or a field of its store."""
    return "student" if measured["run"] else "teacher"


MEASURES = {"retrieval": retrieval, "captions": captions, "labels": labels}


def execute(jobs: int, program: str, *arguments: str) -> str:
    """Run one of the programs with its share of the cores; what it printed."""
    print("$", program, *arguments, file=sys.stderr, flush=True)
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    command = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program} {' '.join(arguments)}\n{done.stderr[-2000:]}")
    return done.stdout


def table(seeds: Sequence[Mapping[str, Rows]]) -> str:
    """Mean and sample standard deviation over the seeds, as Markdown: a row for each variant's rows."""
    columns = list(dict.fromkeys(name for rows in seeds[0].values() for row in rows.values() for name in row))
    lines = [f"| recipe | | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
    for variant, rows in seeds[0].items():
        for row in rows:
            cells = []
            for name in columns:
                values = [seed[variant][row][name] for seed in seeds if name in seed[variant][row]]
                spread = f" ± {stdev(values):.1f}" if len(values) > 1 and stdev(values) else ""
                cells.append(f"{mean(values):.1f}{spread}" if values else "")
            lines.append(f"| {variant} | {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
