"""The model card: what a bundle is, of what data and which teacher, under which licences, how good, how exact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract import config
from contract.schema import FieldSet
from trainer.export.frozen import inside
from trainer.runs import Run

if TYPE_CHECKING:
    from trainer.export.check import Checked

UNKNOWN = "not stated in its files; look where it was published"
USES = {
    "image": 'embedder.images(["a.jpg", "b.png"])',
    "text": 'embedder.texts(["a dog on a beach"])',
    "audio": 'embedder.sounds(["a.wav"])',
}
NEEDS = {"pixels": "pillow", "views": "pillow", "samples": "soundfile", "tokens": "tokenizers"}


def text(run: Run, checked: Sequence[Checked], folder: Path) -> str:
    """The card, as Markdown."""
    sections = (
        [
            "---",
            "library_name: onnx",
            "pipeline_tag: feature-extraction",
            "tags: [precept, distillation]",
            "---",
            "",
        ],
        _head(run, checked),
        _use(checked, run.recipe.student.embedding_dim),
        _models(checked, folder),
        _data(run),
        _training(run),
        _figures(run),
        _exactness(checked),
    )
    return "\n".join(line for section in sections for line in section)


def _head(run: Run, checked: Sequence[Checked]) -> Iterator[str]:
    modalities = ", ".join(one.model.modality for one in checked)
    yield f"# {run.path.name}: {modalities} in one space"
    yield ""
    yield (
        f"A student of {run.recipe.student.embedding_dim} dimensions, distilled with Precept {version('precept')} "
        f"by the recipe `{run.recipe.name}`. Embeddings have unit length: their products are cosines."
    )
    yield ""


def _use(checked: Sequence[Checked], width: int) -> Iterator[str]:
    needed = {NEEDS[kind] for one in checked if (kind := one.model.about["preprocessing"]["kind"]) in NEEDS}
    yield "## Use"
    yield ""
    yield f"`pip install numpy onnxruntime {' '.join(sorted(needed))}`; neither Precept nor torch is needed."
    if "soundfile" in needed:
        yield "Sounds of another sample rate than the model's also take `pip install soxr`."
    yield ""
    yield "```python"
    yield "from embed import Embedder  # embed.py, in this folder"
    yield ""
    yield "embedder = Embedder()"
    for one in checked:
        yield f"{USES[one.model.modality]}  # float32 [n, {width}], unit length"
    yield "```"
    yield ""


def _models(checked: Sequence[Checked], folder: Path) -> Iterator[str]:
    yield "## Models"
    yield ""
    yield "| modality | file | inputs | frozen encoder | weights | licence of the weights |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in checked:
        model = one.model
        files = f"`{model.about['model']}`" + (f", `{model.about['int8']}`" if "int8" in model.about else "")
        encoder, recipe = (model.source.fieldset.provenance[key] for key in ("encoder", "recipe"))
        licence = _licences(folder / "frozen" / model.modality) if model.loading else "none: it has no weights"
        yield (
            f"| {model.modality} | {files} | {', '.join(model.about['inputs'])} | {_named(encoder)}: "
            f"`{model.source.field}` | {_weights(recipe)} | {licence} |"
        )
    yield ""
    for one in checked:
        if one.model.loading:
            yield f"- The frozen {one.model.modality} encoder alone: `{one.model.loading}`"
    yield "- `student.safetensors`: the student's weights by name. Adapters and trunk are modules of Precept, which"
    yield "  no other library loads; the ONNX files hold them together with the encoders."
    yield ""


def _data(run: Run) -> Iterator[str]:
    yield "## Data"
    yield ""
    for dataset, kinds in run.record["trained"].items():
        store = next(s.store for s in run.streams.streams if s.store.manifest.dataset == dataset)
        about, manifest = _dataset(dataset), store.manifest
        yield f"- **{about.get('title', dataset)}**; licence: {about.get('licence', 'not known to Precept')}"
        if "://" in about.get("homepage", ""):
            yield f"  ({about['homepage']})"
        for modality in manifest.modalities:
            counts = ", ".join(f"{split} {count:,}" for split, count in manifest.splits(modality).items())
            yield f"  - {modality}: {counts}"
        yield f"  - pairs trained on: {', '.join(kinds)}"
    yield ""
    languages = run.recipe.languages
    yield f"Languages of the captions: {languages if isinstance(languages, str) else ', '.join(languages)}."
    yield ""


def _training(run: Run) -> Iterator[str]:
    recipe = run.recipe
    yield "## Training"
    yield ""
    objectives = ", ".join(f"{name} ({objective.kind})" for name, objective in recipe.objectives.items())
    yield f"- objectives: {objectives}"
    for name, reference in run.streams.streams[0].targets.items():
        fieldset = run.streams.streams[0].store.fieldsets[reference.rpartition("/")[0]]
        yield f"- target `{name}`: `{reference}` of {_teacher(fieldset)}"
    yield f"- {recipe.epochs} epochs at most, batches of {recipe.batch_size}, seed {recipe.seed}"
    yield f"- begun {run.record['created']}; `recipe.yaml` has every setting"
    yield ""


def _figures(run: Run) -> Iterator[str]:
    """The reports that `eval` has written beside the run, as they stand."""
    yield "## Figures"
    yield ""
    reports = sorted((run.path / "reports").glob("*.md"))
    for path in reports:
        yield path.read_text().replace("# ", "### ", 1).rstrip()
        yield ""
    if not reports:
        yield f"None yet: `eval retrieval --run {run.path}`, and then `trainer export {run.path}` again."
        yield ""


def _exactness(checked: Sequence[Checked]) -> Iterator[str]:
    yield "## How exact"
    yield ""
    yield "Largest difference of any value of an embedding, on a CPU:"
    yield ""
    yield "| modality | onnxruntime from torch | this folder from the run's own embeddings | int8 |"
    yield "| --- | --- | --- | --- |"
    for one in checked:
        own = f"{one.own:.0e} ({one.num_items} items)" if one.num_items else "not compared: no files here"
        yield f"| {one.model.modality} | {one.model.difference:.0e} | {own} | {_int8(one)} |"
    yield ""


def _int8(one: Checked) -> str:
    if one.int8 is None:
        return "not made"
    size = f"{one.int8_size_bytes / 1e6:.1f} MB"
    return f"{size}, cosine with float32 {one.int8.mean():.4f}, {one.int8.min():.4f} at least"


def _teacher(fieldset: FieldSet) -> str:
    return _named(fieldset.provenance.get("encoder", {}))


def _named(encoder: Any) -> str:
    if "members" in encoder:
        return f"{encoder['kind']} of {', '.join(map(_named, encoder['members']))}"
    return f"{encoder.get('kind', 'an imported file')} {encoder.get('model', '')}".strip()


def _weights(recipe: Any) -> str:
    return ", ".join(map(_weights, recipe["members"])) if "members" in recipe else recipe.get("weights", "none")


def _dataset(name: str) -> dict[str, Any]:
    path = config.SHIPPED / "data_manifests" / f"{name}.yaml"
    return config.read_tree(path) if path.is_file() else {}


def _licences(folder: Path) -> str:
    """Of a model, or of each of an ensemble's that lie below."""
    members = sorted(path for path in folder.iterdir() if path.name.isdecimal())
    return "; ".join(dict.fromkeys(map(_licence, members or [folder])))


def _licence(folder: Path) -> str:
    """What the files of a model say of its licence."""
    for path in sorted(folder.glob("LICEN[CS]E*")):
        return f"see `{inside(path)}`"
    if (folder / "config.json").is_file():
        tree = json.loads((folder / "config.json").read_text())
        licence = tree.get("license") or tree.get("pretrained_cfg", {}).get("license")
        if licence:
            return str(licence)
    readme = folder / "README.md"
    lines = readme.read_text(errors="replace").splitlines() if readme.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), UNKNOWN)
