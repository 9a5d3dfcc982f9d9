"""The folder that a student is taken away in.

    FOLDER/README.md             the model card
           bundle.json           what there is, and how each modality's input is prepared
           embed.py              embeds images, texts and sounds; needs neither Precept nor torch
           image.onnx ...        frozen encoder and student in one model; image.int8.onnx beside it, if asked for
           tokenizer.json        where texts are tokenized
           frozen/<modality>/    the frozen encoder alone, for timm or transformers
           student.safetensors   the student's weights; recipe.yaml says how they were trained

It is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from contract import bundle, config, fingerprint
from contract.errors import RunError
from contract.files import PARTIAL, replace_file
from contract.manifest import MODALITIES
from trainer import checkpoint
from trainer.device import Device
from trainer.export import card, check, graph, source
from trainer.export.portable import Portable, portable
from trainer.export.source import Source
from trainer.runs import Run
from trainer.state import State

# Of a run.
DEFAULT = "export"


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One modality's model in a bundle.

    `about` is what bundle.json says of it, `difference` the largest between onnxruntime and torch, `loading` the
    line of Python that loads the frozen encoder from the folder, "" where that has no weights.
    """

    source: Source
    portable: Portable
    about: dict[str, Any]
    difference: float
    loading: str

    @property
    def modality(self) -> str:
        """image, text or audio."""
        return self.source.fieldset.modality


def write(run: Run, folder: Path | None, *, int8: bool, say: Callable[[str], None]) -> Path:
    """Write the bundle of a finished run's best checkpoint into `folder`, by default RUN/export; returns it.

    A bundle that is there is replaced. `say` is told how each model compares with what it was made from.
    """
    if not run.record["finished"]:
        raise RunError(f"{run.path} is not finished; `trainer run --run {run.path} --resume` finishes it")
    graph.require_packages()
    folder = folder or run.path / DEFAULT
    if folder.exists() and not (folder / bundle.DESCRIPTION).is_file():
        raise RunError(f"{folder} exists and is no bundle; give another folder with --to, or remove this one")
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    partial.mkdir(parents=True)
    try:
        _fill(run, partial, int8=int8, say=say)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _fill(run: Run, folder: Path, *, int8: bool, say: Callable[[str], None]) -> None:
    state = State(run.recipe, run.streams, Device(name="cpu", precision="float32"), is_new=False)
    state.restore_student(run.best)
    # What can't be exported is told before any model is written.
    sources = [source.find(run.streams, one) for one in sorted(run.streams.shapes(), key=MODALITIES.index)]
    made = [(one, portable(one.encoder, one.field, one.has_length, one.name)) for one in sources]
    models = [_model(one, of_it, state.student, folder, int8=int8) for one, of_it in made]
    _describe(run, folder, models)
    shutil.copyfile(bundle.__file__, folder / "embed.py")
    replace_file(folder / "recipe.yaml", config.dump(run.recipe).encode())
    checkpoint.save(folder / "student.safetensors", state.student.state_dict(), {"recipe": run.recipe.name})
    checked = []
    for model in models:
        checked.append(check.check(run, folder, model))
        say(str(checked[-1]))
    replace_file(folder / "README.md", card.text(run, checked, folder).encode())


def _model(one: Source, made: Portable, student: nn.Module, folder: Path, *, int8: bool) -> Model:
    modality = one.fieldset.modality
    path = folder / f"{modality}.onnx"
    written = graph.write(graph.Whole(made.frozen, student, modality, one.encoding), made, path, one.name)
    about: dict[str, Any] = {
        "model": path.name,
        "inputs": list(made.inputs),
        "preprocessing": dict(made.preprocessing),
    }
    if int8:
        about["int8"] = f"{modality}.int8.onnx"
        graph.quantize(path, folder / about["int8"], written.linear)
    if made.tokenizer is not None:
        made.tokenizer(folder / "tokenizer.json")
    return Model(
        source=one,
        portable=made,
        about=about,
        difference=written.difference,
        loading=made.save(folder / "frozen" / modality),
    )


def _describe(run: Run, folder: Path, models: Sequence[Model]) -> None:
    tree = {
        "format": bundle.FORMAT,
        "recipe": run.recipe.name,
        "weights": fingerprint.of_file(run.best),
        "width": run.recipe.student.embedding_dim,
        "modalities": {model.modality: model.about for model in models},
    }
    replace_file(folder / bundle.DESCRIPTION, (json.dumps(tree, indent=2) + "\n").encode())
